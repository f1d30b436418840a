"""Every measure of the page for students: formula, range, how to read it, where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from sublayer.report.formula import mathml


@dataclass(frozen=True)
class Entry:
    """One measure; `tex` in the small TeX of `sublayer.report.formula`."""

    name: str
    tex: str
    span: str
    reading: str
    source: str

    @property
    def formula(self) -> Markup:
        return mathml(self.tex)


ENTRIES = (
    Entry(
        "Held-out loss",
        r"L = - \frac{1}{N} \sum_t \ln p(w_t)",
        "0 and up, in nats per predicted token",
        "Mean surprise at text that was not trained on. A model that guesses evenly among V tokens has ln V. exp L is "
        "the perplexity. Losses compare only on the same data with the same tokenizer.",
        "Cross-entropy; Shannon 1948.",
    ),
    Entry(
        "Paired difference",
        r"Δ = \frac{1}{S} \sum_s (L_{s, \text{design}} - L_{s, \text{baseline}})",
        "any number; below 0: lower loss than the baseline",
        "The same seed gives both designs the same batches and, where they share parameters, the same initial weights. "
        "So the difference is taken seed by seed, and much of the noise cancels.",
        "Student 1908.",
    ),
    Entry(
        "Interval",
        r"Δ ± t_{S - 1} \frac{s}{\sqrt{S}}",
        "needs two seeds at least",
        "Where the mean difference over all seeds plausibly lies; s is the spread of the differences. If it contains "
        "0, this study does not tell the two designs apart. With two or three seeds it is wide. It says nothing "
        "about other sizes or data.",
        "Student's t over seeds; Student 1908.",
    ),
    Entry(
        "FLOPs",
        r"C = \text{FLOPs per token} · \text{tokens}",
        "0 and up",
        "Additions and multiplications of training, counted from the equation: forward and backward pass. Designs with "
        "equal FLOPs can differ in time.",
        "Counted by Sublayer's cost model.",
    ),
    Entry(
        "Norm ratio",
        r"r = \frac{‖\text{term}‖}{‖\text{stream}‖}",
        "0 and up",
        "How much a branch adds beside what it is added to, token by token; both with their factors in the equation. "
        "0.1: a small correction. 1: as large as the stream. Shown are the median and the middle half of the tokens.",
        "Compare Sonkar & Baraniuk 2023, arXiv:2305.13297, who study what attention adds.",
    ),
    Entry(
        "Norm of the stream",
        r"‖x_i‖ = \sqrt{\sum_k x_{i k}^2}",
        "0 and up",
        "Length of a token's vector where it leaves a layer. It grows with depth when branches are added to a stream "
        "that no norm resets; then late layers change it less.",
        "Xiong et al. 2020, arXiv:2002.04745.",
    ),
    Entry(
        "Gradient norm",
        r"g = ‖∇_θ L‖",
        "0 and up",
        "Length of the loss's gradient with respect to all parameters of one layer. Very uneven values over depth make "
        "training fragile and warm-up necessary.",
        "Xiong et al. 2020, arXiv:2002.04745.",
    ),
    Entry(
        "Rank-one residual",
        r"ρ = \frac{‖X - 1 m^⊤‖}{‖X‖}",
        "0 to 1; 0: every token has the same vector",
        "X holds one token per row, m is their mean. What is left after the part that all tokens share. Small: tokens "
        "have collapsed. Here with the Frobenius norm.",
        "Dong, Cordonnier & Loukas 2021, arXiv:2103.03404.",
    ),
    Entry(
        "IsoScore",
        r"\frac{d k - 1}{d - 1} , d k = \frac{(\sum_a λ_a)^2}{\sum_a λ_a^2}",
        "0 to 1; 1: isotropic",
        "λ are the variances along the principal axes, d is the hidden size. The share of dimensions that the variance "
        "fills. Blind to the mean: a far-away cloud can score 1.",
        "Rudman, Gillman, Rayne & Eickhoff 2022, arXiv:2108.07344.",
    ),
    Entry(
        "Mean cosine",
        r"\frac{1}{n (n - 1)} \sum_{i ≠ j} \frac{x_i · x_j}{‖x_i‖ ‖x_j‖}",
        "about 0 to 1; 0: isotropic",
        "Mean cosine between vectors of different tokens. A few large dimensions can rule it (Timkey & van Schijndel "
        "2021, arXiv:2109.04404), so read it beside the others.",
        "Ethayarajh 2019, arXiv:1909.00512.",
    ),
    Entry(
        "Effective rank",
        r"\exp (- \sum_k p_k \ln p_k) , p_k = \frac{σ_k}{\sum_l σ_l}",
        "1 to the hidden size",
        "σ are the singular values of X, not centred. The number of directions in real use.",
        "Roy & Vetterli 2007, EUSIPCO.",
    ),
    Entry(
        "Partition ratio",
        r"\frac{\min_c Z(c)}{\max_c Z(c)} , Z(c) = \sum_i e^{c · x_i}",
        "0 to 1; 1: isotropic",
        "c runs over the eigenvectors of XᵀX and their negatives. It depends on the length of the vectors: compare "
        "only clouds of like norm. For a long stream it is soon almost 0.",
        "Mu & Viswanath 2018, arXiv:1702.01417.",
    ),
    Entry(
        "Attention entropy",
        r"H = - \sum_j α_{i j} \ln α_{i j}",
        "0 to ln of the number of visible tokens, in nats",
        "α are the weights of one query. 0: it looks at one token. Largest: it averages all alike. Mean over heads and "
        "queries.",
        "Shannon 1948; for attention: Zhai et al. 2023, arXiv:2303.06296.",
    ),
    Entry(
        "Attention on the first token",
        r"\frac{1}{n} \sum_i α_{i 1}",
        "0 to 1",
        "Mean weight that queries put on the first token they may see. Large values are called an attention sink.",
        "Xiao et al. 2024, arXiv:2309.17453.",
    ),
)
