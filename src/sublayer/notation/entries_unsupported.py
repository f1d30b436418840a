"""Published designs that the notation cannot express, each with the reason, so that asking for one gives an answer."""

from sublayer.notation.entries import Unsupported

UNSUPPORTED: tuple[Unsupported, ...] = (
    Unsupported(
        name="hyper-connections",
        aliases=("hc",),
        reason="it mixes n copies of the stream with learned matrices, some computed from the input; the notation has "
        "sums with fixed scalars, one gate or one vector",
        citation="Zhu et al. (2024), Hyper-Connections, arXiv:2409.19606",
    ),
    Unsupported(
        name="mhc",
        aliases=("manifold-constrained-hyper-connections",),
        reason="as hyper-connections: a learned doubly stochastic matrix mixes the copies of the stream",
        citation="Xie et al. (2025), mHC: Manifold-Constrained Hyper-Connections, arXiv:2512.24880",
    ),
    Unsupported(
        name="attention-residuals",
        aliases=("attnres", "attention-residual"),
        reason="each layer reads a softmax-weighted sum over the outputs of all earlier layers; a design passes only "
        "its streams from layer to layer",
        citation="Kimi Team (2026), Attention Residuals, arXiv:2603.15031",
    ),
    Unsupported(
        name="ngpt",
        aliases=("normalized-transformer", "normalised-transformer"),
        reason="it moves the stream along a sphere with a learned step per channel and keeps the weight matrices "
        "normalised; neither a norm without weights nor a constraint on weights can be written",
        citation="Loshchilov et al. (2024), nGPT: Normalized Transformer with Representation Learning on the "
        "Hypersphere, arXiv:2410.01131",
    ),
    Unsupported(
        name="altup",
        aliases=("gemma-3n", "alternating-updates"),
        reason="the stream is split into blocks that are predicted and corrected with learned coefficients",
        citation="Baykal et al. (2023), Alternating Updates for Efficient Transformers, arXiv:2301.13310",
    ),
    Unsupported(
        name="laurel",
        aliases=("learned-augmented-residual",),
        reason="the residual passes through a learned low-rank matrix; the notation has no bare linear map on the "
        "stream",
        citation="Menghani, Kumar and Kumar (2024), LAuReL: Learned Augmented Residual Layer, arXiv:2411.07501",
    ),
    Unsupported(
        name="denseformer",
        aliases=("dwa", "depth-weighted-average"),
        reason="each layer reads a learned average of all earlier layers' outputs; a design passes only its streams "
        "from layer to layer",
        citation="Pagliardini et al. (2024), DenseFormer: Enhancing Information Flow in Transformers via Depth "
        "Weighted Averaging, arXiv:2402.02622",
    ),
    Unsupported(
        name="deepcrossattention",
        aliases=("dca",),
        reason="queries, keys and values each read their own input-dependent mix of all earlier layers' outputs",
        citation="Heddes et al. (2025), DeepCrossAttention: Supercharging Transformer Residual Connections, "
        "arXiv:2502.06785",
    ),
    Unsupported(
        name="muddformer",
        aliases=("mudd",),
        reason="queries, keys, values and the residual each read their own input-dependent mix of all earlier layers' "
        "outputs",
        citation="Xiao et al. (2025), MUDDFormer: Breaking Residual Bottlenecks in Transformers via Multiway Dynamic "
        "Dense Connections, arXiv:2502.12170",
    ),
    Unsupported(
        name="value-residual",
        aliases=("resformer", "value-residual-learning"),
        reason="the residual runs between the values inside the attention of different layers; the notation does not "
        "open operators",
        citation="Zhou et al. (2024), Value Residual Learning, arXiv:2410.17897",
    ),
    Unsupported(
        name="realformer",
        aliases=("residual-attention-scores",),
        reason="the residual runs between the attention scores of different layers; the notation does not open "
        "operators",
        citation="He et al. (2020), RealFormer: Transformer Likes Residual Attention, arXiv:2012.11747",
    ),
    Unsupported(
        name="qk-norm",
        aliases=("query-key-norm",),
        reason="it is inside the attention and is an option of the model's configuration (qk_norm=True), with any "
        "design",
        citation="Henry et al. (2020), Query-Key Normalization for Transformers, arXiv:2010.04245",
    ),
    Unsupported(
        name="sub-ln",
        aliases=("magneto",),
        reason="its extra norms sit inside the operators, before the output matrix of the attention and of the FFN; "
        "seen from outside its wiring is input-norm",
        citation="Wang et al. (2022), Foundation Transformers (Magneto), arXiv:2210.06423",
    ),
    Unsupported(
        name="shaped-attention",
        aliases=("sas", "sas-p", "simplified-blocks"),
        reason="its attention is mixed with the identity and has no value and output projections; the wiring around "
        "it is skipless-parallel",
        citation="He and Hofmann (2023), Simplifying Transformer Blocks, arXiv:2311.01906",
    ),
    Unsupported(
        name="gtrxl",
        aliases=("gated-transformer-xl", "gru-gating"),
        reason="a GRU in place of the sum; the only gate of the notation is one learned number. The nearest is "
        "gated-input-norm",
        citation="Parisotto et al. (2019), Stabilizing Transformers for Reinforcement Learning, arXiv:1910.06764",
    ),
    Unsupported(
        name="highway",
        aliases=("highway-transformer", "highway-network"),
        reason="its gates are computed from the input; the only gate of the notation is one learned number",
        citation="Srivastava, Greff and Schmidhuber (2015), Highway Networks, arXiv:1505.00387",
    ),
    Unsupported(
        name="conformer",
        aliases=("conformer-block",),
        reason="its block has a convolution, which can be written (mixer) but not built; without it the wiring is "
        "near macaron-input-norm",
        citation="Gulati et al. (2020), Conformer: Convolution-augmented Transformer for Speech Recognition, "
        "arXiv:2005.08100",
    ),
    Unsupported(
        name="mixture-of-depths",
        aliases=("mod",),
        reason="each token decides by a router whether it runs the block; a design is the same for every token",
        citation="Raposo et al. (2024), Mixture-of-Depths: Dynamically allocating compute in transformer-based "
        "language models, arXiv:2404.02258",
    ),
    Unsupported(
        name="mobilebert",
        aliases=("bottleneck-bert",),
        reason="its branches run in a narrower stream behind learned bottlenecks; all values of a design are as wide "
        "as the stream",
        citation="Sun et al. (2020), MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices, "
        "arXiv:2004.02984",
    ),
    Unsupported(
        name="encoder-decoder",
        aliases=("seq2seq", "cross-attention"),
        reason="a block has no second sequence to attend to: cross can be written, for the auditor, but not built",
        citation="Vaswani et al. (2017), Attention Is All You Need, arXiv:1706.03762",
    ),
)
