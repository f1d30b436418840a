"""Named whole-model designs: embedding, block and final sections as published models have them.

A design says how a model is wired. Kinds of norm, biases, positions, QK-norm, head counts and sharing of layers are
options of a model's configuration, so two models with one wiring have one equation here.
"""

from sublayer.notation.entries import Entry

_POST = "x = norm(x + attn(x)); x = norm(x + ffn(x))"
_INPUT = "x = x + attn(norm(x)); x = x + ffn(norm(x))"
_OUTPUT = "x = x + norm(attn(x)); x = x + norm(ffn(x))"
_SANDWICH = "x = x + norm(attn(norm(x))); x = x + norm(ffn(norm(x)))"
_PARALLEL_1 = "h = norm(x); x = x + attn(h) + ffn(h)"
_PARALLEL_2 = "x = x + attn(norm(x)) + ffn(norm(x))"


def _whole(block: str, *, embed: str = "x = e", final: str) -> str:
    return f"embed: {embed}\nblock: {block}\nfinal: {final}"


MODELS: tuple[Entry, ...] = (
    # Post-norm
    Entry(
        name="transformer",
        title="Transformer (2017)",
        text=_whole(_POST, final="x = x"),
        citation="Vaswani et al. (2017), Attention Is All You Need, arXiv:1706.03762",
        used="the original machine-translation model",
        aliases=("original-transformer", "vaswani", "vanilla-transformer"),
        note="One stack of it: the decoder's cross-attention is not in a block here.",
    ),
    Entry(
        name="gpt-1",
        title="GPT-1",
        text=_whole(_POST, final="x = x"),
        citation="Radford et al. (2018), Improving Language Understanding by Generative Pre-Training, OpenAI",
        used="the first GPT",
        aliases=("gpt", "openai-gpt"),
    ),
    Entry(
        name="bert",
        title="BERT",
        text=_whole(_POST, embed="x = norm(e)", final="x = x"),
        citation="Devlin et al. (2018), BERT: Pre-training of Deep Bidirectional Transformers for Language "
        "Understanding, arXiv:1810.04805",
        used="BERT; DistilBERT, ELECTRA and MPNet have the same wiring",
        aliases=("bert-base", "bert-large", "distilbert", "electra"),
    ),
    Entry(
        name="roberta",
        title="RoBERTa",
        text=_whole(_POST, embed="x = norm(e)", final="x = x"),
        citation="Liu et al. (2019), RoBERTa: A Robustly Optimized BERT Pretraining Approach, arXiv:1907.11692",
        used="RoBERTa, XLM-R",
        aliases=("xlm-r", "xlm-roberta"),
        note="The same wiring as bert; the difference is in the training.",
    ),
    Entry(
        name="albert",
        title="ALBERT",
        text=_whole(_POST, embed="x = norm(e)", final="x = x"),
        citation="Lan et al. (2019), ALBERT: A Lite BERT for Self-supervised Learning of Language Representations, "
        "arXiv:1909.11942",
        used="ALBERT",
        note="The wiring of one pass: sharing one layer across the depth is a matter of the model, and the norm of "
        "the embedding comes before its projection to the hidden size.",
    ),
    Entry(
        name="deberta",
        title="DeBERTa",
        text=_whole(_POST, embed="x = norm(e)", final="x = x"),
        citation="He et al. (2020), DeBERTa: Decoding-enhanced BERT with Disentangled Attention, arXiv:2006.03654",
        used="DeBERTa",
        note="Its disentangled attention is inside attn.",
    ),
    Entry(
        name="bart",
        title="BART",
        text=_whole(_POST, embed="x = norm(e)", final="x = x"),
        citation="Lewis et al. (2019), BART: Denoising Sequence-to-Sequence Pre-training, arXiv:1910.13461",
        used="BART's encoder",
        note="The encoder: the decoder's cross-attention is not in a block here.",
    ),
    Entry(
        name="xlnet",
        title="XLNet",
        text=_whole(_POST, final="x = x"),
        citation="Yang et al. (2019), XLNet: Generalized Autoregressive Pretraining for Language Understanding, "
        "arXiv:1906.08237",
        used="XLNet",
        note="One of its two streams: the second, for permuted targets, is a matter of the training.",
    ),
    Entry(
        name="universal-transformer",
        title="Universal Transformer",
        text=_whole(_POST, final="x = x"),
        citation="Dehghani et al. (2018), Universal Transformers, arXiv:1807.03819",
        used="Universal Transformer",
        note="The wiring of one pass: sharing the layer across the depth, and stopping early, are matters of the "
        "model.",
    ),
    Entry(
        name="opt-350m",
        title="OPT-350m",
        text=_whole(_POST, final="x = x"),
        citation="Zhang et al. (2022), OPT: Open Pre-trained Transformer Language Models, arXiv:2205.01068",
        used="the one OPT size with post-norm",
        note="Its embedding is 512 wide and projected to 1,024 and back, outside the wiring.",
    ),
    Entry(
        name="glm-130b",
        title="GLM-130B",
        text=_whole(
            "x = norm(sqrt(2*depth)*x + attn(x)); x = norm(sqrt(2*depth)*x + ffn(x))",
            final="x = x",
        ),
        citation="Zeng et al. (2022), GLM-130B: An Open Bilingual Pre-trained Model, arXiv:2210.02414",
        used="GLM-130B, whose paper writes DeepNorm with alpha = (2N)**(1/2)",
        note="As the paper writes it; the released code norms first and takes the residual after the norm, as "
        "chatglm-6b does.",
    ),
    Entry(
        name="chatglm-6b",
        title="ChatGLM-6B",
        text=_whole(
            "h = norm(x); x = sqrt(2*depth)*h + attn(h); h = norm(x); x = sqrt(2*depth)*h + ffn(h)",
            final="x = norm(x)",
        ),
        citation="Zeng et al. (2022), GLM-130B, arXiv:2210.02414; wiring from the released code of ChatGLM-6B (2023)",
        used="ChatGLM-6B: DeepNorm with each norm moved to the next sub-layer",
        aliases=("chatglm",),
    ),
    # Input norm
    Entry(
        name="gpt-2",
        title="GPT-2",
        text=_whole(_INPUT, final="x = norm(x)"),
        citation="Radford et al. (2019), Language Models are Unsupervised Multitask Learners, OpenAI",
        used="GPT-2; GPT-3, GPT-Neo, OPT (but 350m) and MPT have the same wiring",
        aliases=("gpt-3", "opt", "mpt"),
    ),
    Entry(
        name="t5",
        title="T5",
        text=_whole(_INPUT, final="x = norm(x)"),
        citation="Raffel et al. (2019), Exploring the Limits of Transfer Learning with a Unified Text-to-Text "
        "Transformer, arXiv:1910.10683",
        used="T5, mT5, UMT5",
        note="The encoder: the decoder's cross-attention is not in a block here. T5's norm is what is now called "
        "RMSNorm.",
    ),
    Entry(
        name="llama",
        title="Llama",
        text=_whole(_INPUT, final="x = norm(x)"),
        citation="Touvron et al. (2023), LLaMA: Open and Efficient Foundation Language Models, arXiv:2302.13971",
        used="Llama 1 to 3; Mistral, Qwen 2 and 3 and SmolLM have the same wiring",
        aliases=("llama-2", "llama-3", "mistral", "qwen2", "qwen3"),
        note="norm='rmsnorm' and a SwiGLU FFN are options of the configuration, as is Qwen 3's QK-norm.",
    ),
    Entry(
        name="olmo",
        title="OLMo",
        text=_whole(_INPUT, final="x = norm(x)"),
        citation="Groeneveld et al. (2024), OLMo: Accelerating the Science of Language Models, arXiv:2402.00838",
        used="OLMo 1",
        aliases=("olmo-1",),
        note="OLMo's norms have no weights, which changes no wiring.",
    ),
    Entry(
        name="vit",
        title="ViT",
        text=_whole(_INPUT, final="x = norm(x)"),
        citation="Dosovitskiy et al. (2020), An Image is Worth 16x16 Words, arXiv:2010.11929",
        used="Vision Transformer, DeiT, MAE",
        aliases=("vision-transformer", "deit"),
    ),
    Entry(
        name="bloom",
        title="BLOOM",
        text=_whole(_INPUT, embed="x = norm(e)", final="x = norm(x)"),
        citation="Le Scao et al. (2022), BLOOM: A 176B-Parameter Open-Access Multilingual Language Model, "
        "arXiv:2211.05100",
        used="BLOOM; mBART's encoder, CLIP's image encoder and RoBERTa-PreLayerNorm have the same wiring",
        aliases=("embedding-norm", "roberta-prelayernorm", "mbart"),
    ),
    Entry(
        name="nanochat",
        title="nanochat (first version)",
        text=_whole(_INPUT, embed="x = norm(e)", final="x = norm(x)"),
        citation="Karpathy (2025), nanochat, github.com/karpathy/nanochat",
        used="nanochat as first released; later versions mix the embedding in (embedding-mix)",
        note="Its norms have no weights, and it has QK-norm: neither is wiring.",
    ),
    Entry(
        name="modernbert",
        title="ModernBERT",
        text=(
            "embed: x = norm(e)\n"
            "block[:1]: x = x + attn(x); x = x + ffn(norm(x))\n"
            "block[1:]: x = x + attn(norm(x)); x = x + ffn(norm(x))\n"
            "final: x = norm(x)"
        ),
        citation="Warner et al. (2024), Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder, "
        "arXiv:2412.13663",
        used="ModernBERT: the first layer has no attention norm, since the embedding has just been normed",
    ),
    Entry(
        name="granite",
        title="Granite 3",
        text=_whole("x = x + 0.22*attn(norm(x)); x = x + 0.22*ffn(norm(x))", final="x = norm(x)"),
        citation="Granite Team, IBM (2024), Granite 3.0 Language Models; released configurations (residual_multiplier "
        "0.22)",
        used="IBM's Granite 3 and 4 dense models",
        aliases=("granite-3",),
        note="The multipliers of the embedding, the attention scores and the logits are options of its model, not "
        "wiring.",
    ),
    Entry(
        name="minicpm",
        title="MiniCPM",
        text=_whole("x = x + 1.4*attn(norm(x))/sqrt(depth); x = x + 1.4*ffn(norm(x))/sqrt(depth)", final="x = norm(x)"),
        citation="Hu et al. (2024), MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training "
        "Strategies, arXiv:2404.06395",
        used="MiniCPM (scale_depth 1.4)",
    ),
    Entry(
        name="cait",
        title="CaiT",
        text=_whole("x = x + scale(attn(norm(x))); x = x + scale(ffn(norm(x)))", final="x = norm(x)"),
        citation="Touvron et al. (2021), Going deeper with Image Transformers, arXiv:2103.17239",
        used="CaiT's self-attention layers; DINOv2 has the same wiring",
        aliases=("dinov2",),
        note="CaiT's last two layers, in which only the class token attends, are not in it.",
    ),
    # Output norm and sandwich
    Entry(
        name="swin-v2",
        title="Swin v2",
        text=_whole(_OUTPUT, embed="x = norm(e)", final="x = norm(x)"),
        citation="Liu et al. (2022), Swin Transformer V2: Scaling Up Capacity and Resolution, arXiv:2111.09883",
        used="Swin Transformer V2",
        aliases=("swin-transformer-v2",),
        note="One stage: merging patches between stages is not a block. Its largest model has a further norm on the "
        "stream every six layers.",
    ),
    Entry(
        name="olmo-2",
        title="OLMo 2",
        text=_whole(_OUTPUT, final="x = norm(x)"),
        citation="OLMo Team (2025), 2 OLMo 2 Furious, arXiv:2501.00656",
        used="OLMo 2 and OLMo 3",
        aliases=("olmo-3",),
        note="QK-norm is an option of the configuration (qk_norm=True).",
    ),
    Entry(
        name="exaone-4",
        title="EXAONE 4.0",
        text=_whole(_OUTPUT, final="x = norm(x)"),
        citation="LG AI Research (2025), EXAONE 4.0, arXiv:2507.11407",
        used="EXAONE 4.0, which calls it QK-Reorder-LN",
        note="QK-norm is an option of the configuration (qk_norm=True).",
    ),
    Entry(
        name="chameleon",
        title="Chameleon 34B",
        text=_whole(_OUTPUT, final="x = norm(x)"),
        citation="Chameleon Team (2024), Chameleon: Mixed-Modal Early-Fusion Foundation Models, arXiv:2405.09818",
        used="Chameleon 34B; the 7B has input norm",
        aliases=("chameleon-34b",),
        note="QK-norm is an option of the configuration (qk_norm=True).",
    ),
    Entry(
        name="cogview",
        title="CogView",
        text=_whole(_SANDWICH, final="x = norm(x)"),
        citation="Ding et al. (2021), CogView: Mastering Text-to-Image Generation via Transformers, arXiv:2105.13290",
        used="CogView, where the sandwich comes from",
    ),
    Entry(
        name="gemma-2",
        title="Gemma 2",
        text=_whole(_SANDWICH, final="x = norm(x)"),
        citation="Gemma Team (2024), Gemma 2: Improving Open Language Models at a Practical Size, arXiv:2408.00118",
        used="Gemma 2",
        note="Gemma multiplies the embedding by sqrt(hidden size), which is a matter of its embedding.",
    ),
    Entry(
        name="gemma-3",
        title="Gemma 3",
        text=_whole(_SANDWICH, final="x = norm(x)"),
        citation="Gemma Team (2025), Gemma 3 Technical Report, arXiv:2503.19786",
        used="Gemma 3",
        note="QK-norm is an option of the configuration (qk_norm=True). Gemma 3n is another design: see altup.",
    ),
    Entry(
        name="glm-4",
        title="GLM-4-0414",
        text=_whole(_SANDWICH, final="x = norm(x)"),
        citation="Zhipu AI (2025), GLM-4-0414 release; wiring from transformers, models/glm4",
        used="GLM-4-9B-0414 and GLM-4-32B-0414; the GLM-4 of 2024 has input norm",
        aliases=("glm-4-0414",),
    ),
    # Parallel
    Entry(
        name="gpt-j",
        title="GPT-J",
        text=_whole(_PARALLEL_1, final="x = norm(x)"),
        citation="Wang and Komatsuzaki (2021), GPT-J-6B, github.com/kingoflolz/mesh-transformer-jax",
        used="GPT-J; CodeGen (Nijkamp et al. 2022, arXiv:2203.13474) has the same wiring",
        aliases=("codegen",),
    ),
    Entry(
        name="gpt-neox",
        title="GPT-NeoX",
        text=_whole(_PARALLEL_2, final="x = norm(x)"),
        citation="Black et al. (2022), GPT-NeoX-20B: An Open-Source Autoregressive Language Model, arXiv:2204.06745",
        used="GPT-NeoX-20B, Pythia (Biderman et al. 2023, arXiv:2304.01373)",
        aliases=("neox", "pythia"),
        note="The paper describes one shared norm; the code and the released weights have two.",
    ),
    Entry(
        name="palm",
        title="PaLM",
        text=_whole(_PARALLEL_1, final="x = norm(x)"),
        citation="Chowdhery et al. (2022), PaLM: Scaling Language Modeling with Pathways, arXiv:2204.02311",
        used="PaLM: about 15% faster training, a small loss in quality at 8B and none at 62B, by the paper",
    ),
    Entry(
        name="falcon-7b",
        title="Falcon 7B",
        text=_whole(_PARALLEL_1, final="x = norm(x)"),
        citation="Almazrouei et al. (2023), The Falcon Series of Open Language Models, arXiv:2311.16867",
        used="Falcon 7B and Falcon 2 11B",
        aliases=("falcon",),
    ),
    Entry(
        name="falcon-40b",
        title="Falcon 40B",
        text=_whole(_PARALLEL_2, final="x = norm(x)"),
        citation="Almazrouei et al. (2023), The Falcon Series of Open Language Models, arXiv:2311.16867",
        used="Falcon 40B and 180B",
        aliases=("falcon-180b",),
    ),
    Entry(
        name="phi",
        title="Phi-1.5",
        text=_whole(_PARALLEL_1, final="x = norm(x)"),
        citation="Li et al. (2023), Textbooks Are All You Need II: phi-1.5 technical report, arXiv:2309.05463",
        used="Phi-1, Phi-1.5 and Phi-2; Phi-3 has input norm in series",
        aliases=("phi-1", "phi-1.5", "phi-2"),
    ),
    Entry(
        name="cohere",
        title="Command R and Command A",
        text=_whole(_PARALLEL_1, final="x = norm(x)"),
        citation="Cohere (2025), Command A: An Enterprise-Ready Large Language Model, arXiv:2504.00698",
        used="Command R, Command A, Aya Expanse",
        aliases=("command-r", "command-a"),
    ),
    Entry(
        name="vit-22b",
        title="ViT-22B",
        text=_whole(_PARALLEL_1, final="x = norm(x)"),
        citation="Dehghani et al. (2023), Scaling Vision Transformers to 22 Billion Parameters, arXiv:2302.05442",
        used="ViT-22B",
        note="QK-norm is an option of the configuration (qk_norm=True).",
    ),
    Entry(
        name="paf-bert",
        title="PAF version of BERT",
        text=_whole("x = norm(x + attn(x) + ffn(x))", embed="x = norm(e)", final="x = x"),
        citation="Sonkar and Baraniuk (2023), arXiv:2305.13297",
        used="the PAF versions of BERT-large and RoBERTa-large",
        aliases=("paf-roberta",),
    ),
)
