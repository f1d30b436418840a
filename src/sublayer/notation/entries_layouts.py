"""Named block designs: sub-layers in parallel or repeated, carried streams, controls, and the first self-attention."""

from sublayer.notation.entries import Entry

LAYOUTS: tuple[Entry, ...] = (
    # In parallel
    Entry(
        name="paf",
        title="PAF, parallel attention and FFN",
        text="x = norm(x + attn(x) + ffn(x))",
        citation="Sonkar and Baraniuk (2023), Investigating the Role of Feed-Forward Networks in Transformers Using "
        "Parallel Attention and Feed-Forward Net Design, arXiv:2305.13297",
        used="PAF versions of BERT-large and RoBERTa-large",
        aliases=("parallel-post-norm",),
        note="Parallel and post-norm: GPT-J and PaLM are parallel with an input norm.",
    ),
    Entry(
        name="parallel-one-norm",
        title="Parallel, one norm",
        text="h = norm(x); x = x + attn(h) + ffn(h)",
        citation="Wang and Komatsuzaki (2021), GPT-J-6B, github.com/kingoflolz/mesh-transformer-jax; Chowdhery et al. "
        "(2022), PaLM, arXiv:2204.02311",
        used="GPT-J, CodeGen, PaLM, Falcon 7B, Phi-1 to Phi-2, Command R, ViT-22B",
        aliases=("parallel", "parallel-shared-norm"),
    ),
    Entry(
        name="parallel-two-norms",
        title="Parallel, two norms",
        text="x = x + attn(norm(x)) + ffn(norm(x))",
        citation="Black et al. (2022), GPT-NeoX-20B, arXiv:2204.06745",
        used="GPT-NeoX, Pythia, Falcon 40B",
    ),
    Entry(
        name="skipless-parallel",
        title="Parallel without a skip",
        text="h = norm(x); x = attn(h) + ffn(h)",
        citation="He and Hofmann (2023), Simplifying Transformer Blocks, arXiv:2311.01906 (SAS-P)",
        used="simplified blocks",
        note="The wiring only: SAS-P trains because its attention is shaped (it starts as the identity) and has no "
        "value and output projections; with ordinary attention this is a control.",
    ),
    Entry(
        name="ladder-residual",
        title="Ladder residual",
        text="embed: x = e; r = e\nblock: a = attn(norm(r)); f = ffn(norm(x)); r = x + a; x = x + a + f",
        citation="Zhang et al. (2025), Ladder-residual: parallelism-aware architecture for accelerating large model "
        "inference with communication overlapping, arXiv:2501.06589",
        used="tensor-parallel inference: each sub-layer reads the stream without the newest term, whose sum over "
        "devices is still under way",
        aliases=("ladder",),
        note="Rewritten from the authors' code, where the two pending terms are carried: r is the stream without the "
        "last FFN's term.",
    ),
    Entry(
        name="parallel-vit",
        title="Parallel pairs (ViT)",
        text="x = x + attn(norm(x)) + attn(norm(x)); x = x + ffn(norm(x)) + ffn(norm(x))",
        citation="Touvron et al. (2022), Three things everyone should know about Vision Transformers, arXiv:2203.09795",
        used="ViT with half the depth and twice the branches",
        aliases=("parallel-pairs",),
    ),
    # More than one of each
    Entry(
        name="macaron",
        title="Macaron",
        text="x = norm(x + 0.5*ffn(x)); x = norm(x + attn(x)); x = norm(x + 0.5*ffn(x))",
        citation="Lu et al. (2019), Understanding and Improving Transformer From a Multi-Particle Dynamic System "
        "Point of View, arXiv:1906.02762",
        used="Macaron Net for translation and BERT; its half-step FFNs live on in Conformer",
        aliases=("macaron-net",),
    ),
    Entry(
        name="macaron-input-norm",
        title="Macaron with input norm",
        text="x = x + 0.5*ffn(norm(x)); x = x + attn(norm(x)); x = x + 0.5*ffn(norm(x))",
        citation="Lu et al. (2019), arXiv:1906.02762; Gulati et al. (2020), Conformer, arXiv:2005.08100",
        used="Conformer without its convolution and without the norm at the end of the block",
        aliases=("macaron-pre-ln",),
    ),
    Entry(
        name="sandwich-order",
        title="Sandwich order",
        text="block[:25%]: x = x + attn(norm(x))\n"
        "block[25%:75%]: x = x + attn(norm(x)); x = x + ffn(norm(x))\n"
        "block[75%:]: x = x + ffn(norm(x))",
        citation="Press, Smith and Levy (2020), Improving Transformer Models by Reordering their Sublayers, "
        "arXiv:1911.03864",
        used="word language models (enwik8, WikiText-103)",
        aliases=("sandwich-transformer",),
        note="The paper's best on WikiText-103 has 6 attention layers, 10 of both and 6 of FFN, so 27% rather than "
        "25% at each end.",
    ),
    Entry(
        name="normformer",
        title="NormFormer (the outer wiring)",
        text="x = x + norm(attn(norm(x))); x = x + ffn(norm(x))",
        citation="Shleifer, Weston and Ott (2021), NormFormer: Improved Transformer Pretraining with Extra "
        "Normalization, arXiv:2110.09456",
        used="causal and masked language models of up to 2.7B in the paper",
        note="NormFormer also scales each head's output and has a norm inside the FFN before its second matrix: both "
        "are inside operators, which the notation does not open.",
    ),
    # More streams
    Entry(
        name="reversible",
        title="Reversible residuals",
        text="embed: x = e; r = e\nblock: x = x + attn(norm(r)); r = r + ffn(norm(x))\nfinal: x = norm(x + r)",
        citation="Gomez et al. (2017), The Reversible Residual Network, arXiv:1707.04585; Kitaev, Kaiser and Levskaya "
        "(2020), Reformer, arXiv:2001.04451",
        used="Reformer, reversible ViT (Mangalam et al. 2022, arXiv:2302.04869)",
        aliases=("revnet", "reversible-residual"),
        note="Reformer ends with both streams side by side, 2*d wide; here they are added. Training recomputes "
        "nothing: that is a matter of memory, not of wiring.",
    ),
    Entry(
        name="embedding-mix",
        title="Embedding mixed into every layer",
        text="embed: x = norm(e); r = x\nblock: x = x + gate(r); x = x + attn(norm(x)); x = x + ffn(norm(x))",
        citation="Jordan et al. (2024), modded-nanogpt, github.com/KellerJordan/modded-nanogpt; Karpathy (2025), "
        "nanochat, github.com/karpathy/nanochat",
        used="modded-nanogpt and nanochat (x0_lambdas and resid_lambdas)",
        aliases=("x0-lambdas",),
        note="Both projects also give the stream's own part a gate that starts at 1, mix value embeddings into the "
        "attention, and use norms without weights.",
    ),
    Entry(
        name="input-injection",
        title="Input injection",
        text="x = x + e; x = x + attn(norm(x)); x = x + ffn(norm(x))",
        citation="Yang et al. (2023), Looped Transformers are Better at Learning Learning Algorithms, arXiv:2311.12424",
        used="looped and weight-tied Transformers, where the embedding is added again at each pass",
        note="The layers of a looped model share their weights, which is a matter of the model and not of the wiring.",
    ),
    # Controls
    Entry(
        name="no-residual",
        title="No residual",
        text="x = norm(attn(x)); x = norm(ffn(x))",
        citation="Dong, Cordonnier and Loukas (2021), Attention is Not All You Need: Pure Attention Loses Rank Doubly "
        "Exponentially with Depth, arXiv:2103.03404",
        used="a control: without the skip the tokens become alike",
        aliases=("skipless",),
    ),
    Entry(
        name="attention-only",
        title="Attention only",
        text="x = x + attn(norm(x))",
        citation="Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, transformer-circuits.pub",
        used="interpretability; a control for what the FFN adds",
        aliases=("attn-only",),
        note="The models of that article have no norms at all.",
    ),
    Entry(
        name="attention-only-post-norm",
        title="Attention only, post-norm",
        text="x = norm(x + attn(x))",
        citation="Sonkar and Baraniuk (2023), arXiv:2305.13297; Dong, Cordonnier and Loukas (2021), arXiv:2103.03404",
        used="the control for the claim that the FFN keeps token embeddings isotropic",
    ),
    Entry(
        name="ffn-only",
        title="FFN only",
        text="x = x + ffn(norm(x))",
        citation="Press, Smith and Levy (2020), arXiv:1911.03864 (the last layers of a sandwich)",
        used="a control for what attention adds: no token sees another",
    ),
    Entry(
        name="pure-attention",
        title="Pure attention",
        text="x = attn(x)\nfinal: x = x",
        citation="Dong, Cordonnier and Loukas (2021), Attention is Not All You Need, arXiv:2103.03404",
        used="a control: its output tends to rank one",
        aliases=("self-attention-network",),
    ),
    # The first form of self-attention
    Entry(
        name="first-attention",
        title="The first form of self-attention",
        text="x = dot(x)\nfinal: x = x",
        citation="Xiao and Zhu (2025), Foundations of Large Language Models, arXiv:2501.09223",
        used="teaching: y_i is the average of the tokens up to i, weighted by softmax of x_i . x_j, with no weights "
        "to learn",
        aliases=("dot-attention", "weightless-attention"),
    ),
    Entry(
        name="dot-residual",
        title="First self-attention with a residual",
        text="x = x + dot(x)\nfinal: x = x",
        citation="Xiao and Zhu (2025), Foundations of Large Language Models, arXiv:2501.09223",
        used="teaching: the smallest block with a residual stream",
    ),
    Entry(
        name="dot-post-norm",
        title="First self-attention, post-norm block",
        text="x = norm(x + dot(x)); x = norm(x + ffn(x))",
        citation="Xiao and Zhu (2025), Foundations of Large Language Models, arXiv:2501.09223",
        used="a control for what the attention's projections add",
    ),
    Entry(
        name="dot-input-norm",
        title="First self-attention, input-norm block",
        text="x = x + dot(norm(x)); x = x + ffn(norm(x))",
        citation="Xiao and Zhu (2025), Foundations of Large Language Models, arXiv:2501.09223",
        used="a control for what the attention's projections add",
    ),
)
