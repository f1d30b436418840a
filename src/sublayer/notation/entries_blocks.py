"""Named block designs: where the norms sit, what is added to what, and by how much it is scaled.

Where a paper leaves the final norm open, the default of the notation decides: a norm after the last block if the block
leaves the stream un-normalised.
"""

from sublayer.notation.entries import Entry

BLOCKS: tuple[Entry, ...] = (
    # Norm placement, in series
    Entry(
        name="post-norm",
        title="Post-norm",
        text="x = norm(x + attn(x)); x = norm(x + ffn(x))",
        citation="Vaswani et al. (2017), Attention Is All You Need, arXiv:1706.03762; Xiao and Zhu (2025), "
        "Foundations of Large Language Models, arXiv:2501.09223, LNorm(F(x) + x)",
        used="the original Transformer, GPT-1, BERT and its family, BART, OPT-350m",
        aliases=("post-ln", "post-layer-norm", "saf"),
        note="Needs learning-rate warm-up and is hard to train when deep (Xiong et al. 2020, arXiv:2002.04745).",
    ),
    Entry(
        name="input-norm",
        title="Input norm (pre-LN)",
        text="x = x + attn(norm(x)); x = x + ffn(norm(x))",
        citation="Xiong et al. (2020), On Layer Normalization in the Transformer Architecture, arXiv:2002.04745; "
        "earlier Wang et al. (2019), arXiv:1906.01787, and Baevski and Auli (2019), arXiv:1809.10853",
        used="GPT-2 and GPT-3, Llama, Mistral, Qwen, T5, ViT and most language models since 2020",
        aliases=("pre-ln", "pre-layer-norm", "pre-layer-normalization"),
    ),
    Entry(
        name="output-norm",
        title="Output norm",
        text="x = x + norm(attn(x)); x = x + norm(ffn(x))",
        citation="Liu et al. (2022), Swin Transformer V2, arXiv:2111.09883 (res-post-norm); Xiao and Zhu (2025), "
        "Foundations of Large Language Models, arXiv:2501.09223, LNorm(F(x)) + x",
        used="Swin v2, Chameleon 34B, OLMo 2, EXAONE 4",
        aliases=("res-post-norm", "pre-norm-flm"),
    ),
    Entry(
        name="sandwich",
        title="Sandwich norm (Peri-LN)",
        text="x = x + norm(attn(norm(x))); x = x + norm(ffn(norm(x)))",
        citation="Ding et al. (2021), CogView, arXiv:2105.13290 (Sandwich-LN); Kim et al. (2025), Peri-LN, "
        "arXiv:2502.02732",
        used="CogView, Gemma 2 and 3, GLM-4-0414, Grok-1, Trinity (AFMoE)",
        aliases=("peri-ln", "peri-norm", "sandwich-ln", "sandwich-norm", "input-output-norm"),
        note="Peri-LN may also norm the embedding (its equation makes that optional); it is left out here.",
    ),
    Entry(
        name="normed-residual",
        title="Residual taken after the norm",
        text="h = norm(x); x = h + attn(h); h = norm(x); x = h + ffn(h)",
        citation="Shoeybi et al. (2019), Megatron-LM, arXiv:1909.08053, code option "
        "apply_residual_connection_post_layernorm",
        used="the flag of that name in Megatron-LM and BLOOM; MiniMax-Text-01; often written by mistake for input norm",
        aliases=("residual-after-norm", "apply-residual-connection-post-layernorm"),
        note="Across layers it is post-norm with each norm moved to the next sub-layer. As a mistake it has shipped "
        "in several projects, once in published weights.",
    ),
    Entry(
        name="mix-ln",
        title="Mix-LN",
        text="block[:25%]: x = norm(x + attn(x)); x = norm(x + ffn(x))\n"
        "block[25%:]: x = x + attn(norm(x)); x = x + ffn(norm(x))",
        citation="Li, Yin and Liu (2024), Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and "
        "Post-LN, arXiv:2412.13795",
        used="language models of up to 7B in the paper",
    ),
    Entry(
        name="hybridnorm",
        title="HybridNorm",
        text="x = x + attn(x); h = norm(x); x = h + ffn(h)",
        citation="Zhuo et al. (2025), HybridNorm: Towards Stable and Efficient Transformer Training via Hybrid "
        "Normalization, arXiv:2503.04598",
        used="dense and mixture-of-experts models of up to 7B in the paper",
        note="The attention has no input norm because it norms its queries, keys and values inside. qk_norm=True "
        "gives two of the three; the norm of the values has no option. Wiring checked against the authors' "
        "configuration file.",
    ),
    Entry(
        name="hybridnorm-star",
        title="HybridNorm*",
        text="block[:1]: x = x + attn(norm(x)); x = x + ffn(norm(x))\n"
        "block[1:]: x = x + attn(x); h = norm(x); x = h + ffn(h)",
        citation="Zhuo et al. (2025), HybridNorm, arXiv:2503.04598",
        used="the variant of HybridNorm with an input norm in the first layer",
        aliases=("hybridnorm*",),
        note="As hybridnorm: the norms of queries, keys and values are inside the attention. The residual of the "
        "first layer is read from the authors' launch command.",
    ),
    # Post-norm made deep
    Entry(
        name="deepnorm",
        title="DeepNorm",
        text="x = norm((2*depth)**0.25 * x + attn(x)); x = norm((2*depth)**0.25 * x + ffn(x))",
        citation="Wang et al. (2022), DeepNet: Scaling Transformers to 1,000 Layers, arXiv:2203.00555",
        used="DeepNet, up to 1,000 layers",
        aliases=("deepnet",),
        note="The factor is that of an encoder-only or decoder-only model. The initialisation that goes with it (beta "
        "= (8*depth)**-0.25) is init='deepnorm' in the model's configuration.",
    ),
    Entry(
        name="admin",
        title="Admin",
        text="x = norm(scale(x) + attn(x)); x = norm(scale(x) + ffn(x))",
        citation="Liu et al. (2020), Understanding the Difficulty of Training Transformers, arXiv:2004.08249",
        used="deep machine translation (60-layer encoders)",
        note="The wiring only: the initial value of each scale comes from a profiling pass over data.",
    ),
    Entry(
        name="residual",
        title="ResiDual",
        text="embed: x = e; r = e\n"
        "block: a = attn(x); r = r + a; x = norm(x + a); f = ffn(x); r = r + f; x = norm(x + f)\n"
        "final: x = x + norm(r)",
        citation="Xie et al. (2023), ResiDual: Transformer with Dual Residual Connections, arXiv:2304.14802",
        used="machine translation",
        aliases=("residual-dual", "dual-residual"),
    ),
    Entry(
        name="b2t",
        title="B2T connection",
        text="y = norm(x + attn(x)); x = norm(x + y + ffn(y))",
        citation="Takase et al. (2022), B2T Connection: Serving Stability and Performance in Deep Transformers, "
        "arXiv:2206.00330",
        used="deep machine translation and language models",
        aliases=("bottom-to-top",),
        note="The encoder form. The decoder's has a cross-attention between, which a block here does not have.",
    ),
    Entry(
        name="keel",
        title="Keel",
        text="x = norm(2*depth*x + attn(norm(x))); x = norm(2*depth*x + ffn(norm(x)))",
        citation="Chen and Wei (2026), Post-LayerNorm Is Back: Stable, ExpressivE, and Deep, arXiv:2601.19895",
        used="language models of up to 1,024 layers in the paper",
        note="The form and its factor, the number of sub-layers, were checked against summaries and a "
        "re-implementation, not against the paper's own equations; an exception for the first layer, if the paper "
        "makes one, is not in it.",
    ),
    # Input norm with scaled branches
    Entry(
        name="layernorm-scaling",
        title="LayerNorm Scaling",
        text="x = x + attn(norm(x)/sqrt(layer)); x = x + ffn(norm(x)/sqrt(layer))",
        citation="Sun et al. (2025), The Curse of Depth in Large Language Models, arXiv:2502.05795",
        used="language models of up to 7B in the paper",
        aliases=("lns",),
    ),
    Entry(
        name="layerscale",
        title="LayerScale",
        text="x = x + scale(attn(norm(x))); x = x + scale(ffn(norm(x)))",
        citation="Touvron et al. (2021), Going deeper with Image Transformers, arXiv:2103.17239",
        used="CaiT, BEiT, DeiT III, DINOv2",
    ),
    Entry(
        name="gated-input-norm",
        title="Input norm with gated branches",
        text="x = x + gate(attn(norm(x))); x = x + gate(ffn(norm(x)))",
        citation="Bachlechner et al. (2020), ReZero is All You Need, arXiv:2003.04887 (the ablation of ReZero with a "
        "norm)",
        used="an ablation; LayerScale with one number in place of a vector",
        aliases=("rezero-pre-ln",),
        note="The paper shares one gate between the two branches in ReZero; here each has its own, as in LayerScale.",
    ),
    Entry(
        name="depth-scaled",
        title="Branches divided by sqrt(depth)",
        text="x = x + attn(norm(x))/sqrt(depth); x = x + ffn(norm(x))/sqrt(depth)",
        citation="Yang et al. (2023), Tensor Programs VI: Feature Learning in Infinite-Depth Neural Networks, "
        "arXiv:2310.02244",
        used="depth-muP: hyper-parameters that carry over from shallow to deep models",
        aliases=("depth-mup",),
        note="The wiring only: depth-muP also scales the learning rate.",
    ),
    # Without norms
    Entry(
        name="rezero",
        title="ReZero",
        text="x = x + gate_a(attn(x)); x = x + gate_a(ffn(x))\nfinal: x = x",
        citation="Bachlechner et al. (2020), ReZero is All You Need: Fast Convergence at Large Depth, arXiv:2003.04887",
        used="character language models of up to 128 layers",
        note="One gate a layer, shared by both branches, zero at the start.",
    ),
    Entry(
        name="skipinit",
        title="SkipInit",
        text="x = x + gate(attn(x)); x = x + gate(ffn(x))\nfinal: x = x",
        citation="De and Smith (2020), Batch Normalization Biases Residual Blocks Towards the Identity Function in "
        "Deep Networks, arXiv:2002.10444",
        used="residual networks without batch norm; here carried over to the two branches of a Transformer",
        note="A gate for each branch, zero at the start.",
    ),
    Entry(
        name="fixup",
        title="Fixup (the wiring)",
        text="x = x + gate(attn(x)); x = x + gate(ffn(x))\nfinal: x = x",
        citation="Zhang, Dauphin and Ma (2019), Fixup Initialization: Residual Learning Without Normalization, "
        "arXiv:1901.09321",
        used="residual networks and machine translation without norms",
        note="The same wiring as skipinit: they differ in where the gates start (Fixup at 1, with branches "
        "initialised small). Fixup's scalar biases are not in it.",
    ),
    Entry(
        name="no-norm",
        title="No norm",
        text="x = x + attn(x); x = x + ffn(x)\nfinal: x = x",
        citation="Huang et al. (2020), Improving Transformer Optimization Through Better Initialization (T-Fixup), "
        "ICML 2020",
        used="T-Fixup; the control without norms",
        aliases=("t-fixup",),
        note="The wiring only: T-Fixup trains it through its initialisation.",
    ),
    Entry(
        name="dyt",
        title="DyT, no norm",
        text="x = x + attn(dyt(x)); x = x + ffn(dyt(x))\nfinal: x = dyt(x)",
        citation="Zhu et al. (2025), Transformers without Normalization, arXiv:2503.10622",
        used="ViT, DiT, wav2vec 2.0 and Llama with tanh(alpha x) in place of each norm, in the paper",
        aliases=("dynamic-tanh", "dyt-no-norm"),
    ),
)
