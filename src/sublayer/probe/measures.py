"""What is measured at a `+`: pure functions of a cloud of token vectors X, shape [n tokens, d].

Five published measures of isotropy are given because they disagree. Three of them see a common mean vector
(`mean_cosine`, `partition_ratio`, `rank_one_residual`), `iso_score` is blind to it, and a few rogue dimensions can
dominate the cosine (Timkey & van Schijndel 2021, "All Bark and No Bite"). Read them side by side.

| measure             | range               | all tokens equal | isotropic about 0 | scale matters | rotation matters |
|---------------------|---------------------|------------------|-------------------|---------------|------------------|
| `mean_cosine`       | -1/(n-1) .. 1       | 1                | about 0           | no            | no               |
| `iso_score`         | 0 .. 1              | 0                | about 1           | no            | no               |
| `partition_ratio`   | 0 .. 1              | below 1          | about 1           | yes           | no               |
| `rank_one_residual` | 0 .. 1              | 0                | about 1           | no            | no               |
| `effective_rank`    | 1 .. min(n, d)      | 1                | about min(n, d)   | no            | no               |

Degenerate input has one rule: a measure that its formula does not define is `None`, never NaN. That is the case
for fewer than two tokens, for any NaN or infinity, and where a function's docstring says so. Arithmetic is in
float64 whatever the dtype of X. One `isotropy` call costs two Gram products, O(n d min(n, d)), and one
eigendecomposition of side min(n, d); a cloud of fewer tokens than dimensions uses the n x n side, which is exact.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Isotropy = dict[str, float | None]
Quartiles = dict[str, float | None]

ISOTROPY_MEASURES = ("mean_cosine", "iso_score", "partition_ratio", "rank_one_residual", "effective_rank")


def _round_off(dtype: torch.dtype) -> float:
    """Relative size below which a residual of data in `dtype` is rounding, not signal."""
    return 1e-12 if dtype == torch.float64 else 1e-6


@dataclass(frozen=True)
class _Cloud:
    """X in float64, divided by its largest entry so that no square overflows, with what the measures share."""

    points: Tensor  # [n, d] float64, largest absolute entry 1 (all zero if X is)
    scale: float  # X = points * scale
    round_off: float

    @classmethod
    def of(cls, x: Tensor) -> "_Cloud | None":
        """The cloud of X, or None where no measure is defined (fewer than two tokens, no dimension, NaN, infinity)."""
        if x.ndim != 2:
            raise ValueError(
                f"a cloud of token vectors has shape [tokens, hidden]: got {tuple(x.shape)}; "
                "flatten batch and sequence first"
            )
        if x.shape[0] < 2 or x.shape[1] < 1:
            return None
        points = x.detach().to(torch.float64)
        scale = float(points.abs().max())
        if not math.isfinite(scale):
            return None
        return cls(points / scale if scale > 0 else points, scale, _round_off(x.dtype))

    @property
    def tokens(self) -> int:
        return self.points.shape[0]

    @property
    def hidden(self) -> int:
        return self.points.shape[1]

    @cached_property
    def energy(self) -> float:
        """||points||_F^2"""
        return float(self.points.square().sum())

    @cached_property
    def centred(self) -> Tensor:  # [n, d]
        return self.points - self.points.mean(dim=0, keepdim=True)

    @cached_property
    def centred_energy(self) -> float:
        """||points - 1 m^T||_F^2, zero where it is nothing but rounding."""
        energy = float(self.centred.square().sum())
        return energy if energy > self.round_off**2 * self.energy else 0.0

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """(singular values [k], projections X c of each eigenvector c of X^T X [n, k]), k = min(n, d), of `points`.

        The side with fewer rows is decomposed: X^T X = V L V^T gives X V, X X^T = U L U^T gives U sqrt(L) = X V.
        """
        x = self.points
        if self.tokens >= self.hidden:
            values, vectors = torch.linalg.eigh(x.T @ x)  # [d], [d, d]
            projections = x @ vectors  # [n, d]
        else:
            values, vectors = torch.linalg.eigh(x @ x.T)  # [n], [n, n]
            projections = vectors * values.clamp_min(0.0).sqrt()  # [n, n]
        # an eigenvalue below the error of eigh is a zero: its square root would not be small
        floor = torch.finfo(torch.float64).eps * max(x.shape) * values.amax().clamp_min(0.0)
        singular = torch.where(values > floor, values, torch.zeros_like(values)).sqrt()
        return singular, projections


def mean_cosine(x: Tensor) -> float | None:
    """Mean cosine similarity over all pairs of different tokens, i != j (Ethayarajh 2019, EMNLP, "self-similarity"
    and "anisotropy" baselines; there estimated from a sample of pairs, here over all of them).

    With u_i = x_i / ||x_i||:  (||sum_i u_i||^2 - n) / (n (n - 1)), in O(n d).

    Range -1/(n-1) .. 1. 0: directions cancel, as in an isotropic cloud; 1: all tokens point the same way. Tokens of
    length zero have no direction and are left out; None if fewer than two remain. Dominated by the few dimensions
    with the largest mean (Timkey & van Schijndel 2021).
    """
    cloud = _Cloud.of(x)
    return None if cloud is None else _mean_cosine(cloud)


def _mean_cosine(cloud: _Cloud) -> float | None:
    length = cloud.points.norm(dim=1)  # [n]
    kept = length > 0
    n = int(kept.sum())
    if n < 2:
        return None
    total = (cloud.points[kept] / length[kept, None]).sum(dim=0)  # [d]
    return min(1.0, max(-1.0 / (n - 1), (float(total.square().sum()) - n) / (n * (n - 1))))


def iso_score(x: Tensor) -> float | None:
    """IsoScore (Rudman, Gillman, Rayne & Eickhoff 2022, Findings of ACL, algorithm 1).

    The published steps: s = variances along the principal components; s^ = sqrt(d) s / ||s||; isotropy defect
    delta = ||s^ - 1|| / sqrt(2 (d - sqrt d)); fraction of dimensions used k = (d - delta^2 (d - sqrt d))^2 / d^2;
    score = (d k - 1) / (d - 1).

    They are computed here without the principal components. Expanding the square, d - delta^2 (d - sqrt d) is
    sum(s^), so that d k = (sum s)^2 / sum s^2 = tr(C)^2 / ||C||_F^2 for the covariance C: IsoScore is the
    participation ratio of C on a scale where one dimension is 0 and all d are 1.

    Range 0 .. 1: the share of dimensions that the variance fills evenly. Blind to the mean: a cone far from the
    origin can score 1. A cloud of identical tokens has no variance to spread and scores 0. None for d = 1.
    At most (n - 2)/(d - 1) for n <= d tokens, so measure with more tokens than dimensions.
    """
    cloud = _Cloud.of(x)
    return None if cloud is None else _iso_score(cloud)


def _iso_score(cloud: _Cloud) -> float | None:
    d = cloud.hidden
    if d < 2:
        return None
    trace = cloud.centred_energy
    if trace == 0.0:
        return 0.0
    y = cloud.centred / math.sqrt(trace)  # [n, d], so that tr(C) = 1 and its square cannot underflow
    gram = y.T @ y if cloud.tokens >= d else y @ y.T  # either side has the same Frobenius norm
    ratio = 1.0 / float(gram.square().sum())
    return min(1.0, max(0.0, (ratio - 1.0) / (d - 1.0)))


def partition_ratio(x: Tensor) -> float | None:
    """The ratio min Z(c) / max Z(c), Z(c) = sum_i exp(c . x_i), over the eigenvectors c of X^T X (Mu & Viswanath 2018,
    ICLR, "All-but-the-Top"; the partition function of Arora et al. 2016).

    An eigenvector has no sign, and Z does: both c and -c are taken, so that the number does not depend on the
    linear-algebra library. The exponentials are never formed (log-sum-exp).

    Range 0 .. 1. 1: the partition function is the same in all directions; 0: one direction dominates. The only
    measure here that depends on the scale of X (longer vectors give smaller ratios, soon below 1e-30 for a stream
    that grows with depth), so compare it between clouds of the same length only. A cloud of zero vectors gives 1.
    None where a projection overflows float64.
    """
    cloud = _Cloud.of(x)
    return None if cloud is None else _partition_ratio(cloud)


def _partition_ratio(cloud: _Cloud) -> float | None:
    along = cloud.spectrum[1] * cloud.scale  # [n, k]: c . x_i
    log_z = torch.cat([torch.logsumexp(along, dim=0), torch.logsumexp(-along, dim=0)])  # [2 k]
    low, high = float(log_z.min()), float(log_z.max())
    if not math.isfinite(high):
        return None
    if cloud.hidden > cloud.tokens:  # eigenvectors orthogonal to all tokens: every exponential is 1
        low, high = min(low, math.log(cloud.tokens)), max(high, math.log(cloud.tokens))
    return math.exp(low - high)


def rank_one_residual(x: Tensor, norm: Literal["frobenius", "composite"] = "frobenius") -> float | None:
    """||X - 1 m^T|| / ||X||, m the mean token: how far the tokens are from being all the same vector
    (Dong, Cordonnier & Loukas 2021, ICML, "Attention is not all you need").

    The paper measures with the composite norm sqrt(||.||_1 ||.||_inf) (largest column sum, largest row sum of
    absolute values), which its proof needs. The default here is the Frobenius norm: the mean is then the exact
    minimiser of the residual, the value lies in 0 .. 1, it does not change under rotation, and no single token
    decides it. `norm="composite"` gives the paper's norm, still with the mean, which is then near its minimiser.

    0: all tokens are equal (rank one, the collapse of the paper); 1: the tokens' mean is zero. None if X is zero.
    For tokens of one length it carries the same information as the mean cosine.
    """
    cloud = _Cloud.of(x)
    if cloud is None:
        return None
    if norm == "frobenius":
        return _rank_one_residual(cloud)
    if norm != "composite":
        raise ValueError(f"norm is 'frobenius' or 'composite': got {norm!r}")
    if cloud.energy == 0.0:
        return None
    return _composite_norm(cloud.centred) / _composite_norm(cloud.points)


def _composite_norm(x: Tensor) -> float:
    size = x.abs()
    return math.sqrt(float(size.sum(dim=0).max()) * float(size.sum(dim=1).max()))


def _rank_one_residual(cloud: _Cloud) -> float | None:
    if cloud.energy == 0.0:
        return None
    return min(1.0, math.sqrt(cloud.centred_energy / cloud.energy))


def effective_rank(x: Tensor) -> float | None:
    """exp(-sum_k p_k ln p_k), p = s / sum(s), s the singular values of X, not centred (Roy & Vetterli 2007, EUSIPCO).

    Range 1 .. min(n, d). 1: all tokens lie on one line through the origin; min(n, d): all directions equally used.
    None if X is zero.
    """
    cloud = _Cloud.of(x)
    return None if cloud is None else _effective_rank(cloud)


def _effective_rank(cloud: _Cloud) -> float | None:
    if cloud.energy == 0.0:
        return None
    singular = cloud.spectrum[0]
    p = singular / singular.sum()
    return max(1.0, math.exp(float(torch.special.entr(p).sum())))


def isotropy(x: Tensor) -> Isotropy:
    """All five measures of X [n, d] with one eigendecomposition: a value, or None where one is not defined."""
    cloud = _Cloud.of(x)
    if cloud is None:
        return dict.fromkeys(ISOTROPY_MEASURES)
    return {
        "mean_cosine": _mean_cosine(cloud),
        "iso_score": _iso_score(cloud),
        "partition_ratio": _partition_ratio(cloud),
        "rank_one_residual": _rank_one_residual(cloud),
        "effective_rank": _effective_rank(cloud),
    }


def quartiles(values: Tensor) -> Quartiles:
    """{"q25", "median", "q75"} of a tensor of any shape (linear interpolation); NaN and infinities are left out, and
    all three are None when nothing remains."""
    flat = values.detach().to(torch.float64).flatten()
    flat = flat[torch.isfinite(flat)]
    if flat.numel() == 0:
        return {"q25": None, "median": None, "q75": None}
    at = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=flat.device)
    q25, median, q75 = torch.quantile(flat, at).tolist()
    return {"q25": q25, "median": median, "q75": q75}


def stream_norm(x: Tensor) -> Quartiles:
    """Quartiles over tokens of the length ||x_i||, X [n, d]."""
    return quartiles(x.detach().to(torch.float64).norm(dim=-1))


def term_ratio(term: Tensor, stream: Tensor) -> Quartiles:
    """Quartiles over tokens of ||term_i|| / ||stream_i||, both [n, d]: how much a branch adds, beside what it is
    added to. A token whose stream is zero has no ratio and is left out."""
    above = term.detach().to(torch.float64).norm(dim=-1)  # [n]
    below = stream.detach().to(torch.float64).norm(dim=-1)  # [n]
    return quartiles(above[below > 0] / below[below > 0])


def cosine(term: Tensor, stream: Tensor) -> float | None:
    """Mean over tokens of the cosine between term_i and stream_i, both [n, d], range -1 .. 1. Negative: the branch
    shortens the stream; 0: it writes at a right angle; positive: it reinforces. Tokens where either is zero or not
    finite are left out; None if none remains."""
    a, b = term.detach().to(torch.float64), stream.detach().to(torch.float64)
    lengths = a.norm(dim=-1) * b.norm(dim=-1)  # [n]
    values = (a * b).sum(dim=-1) / lengths  # [n], NaN where a length is zero
    values = values[torch.isfinite(values)]
    return None if values.numel() == 0 else min(1.0, max(-1.0, float(values.mean())))


def attention_entropy(probabilities: Tensor) -> float | None:
    """Mean over heads and queries of -sum_j p_j ln p_j in nats; probabilities [..., queries, keys], rows sum to 1.

    0: every query looks at one token; ln(keys): it looks at all of them alike. Rows that are not finite are left
    out; None if none remains.
    """
    entropies = torch.special.entr(probabilities.detach().to(torch.float64)).sum(dim=-1).flatten()
    entropies = entropies[torch.isfinite(entropies)]
    return None if entropies.numel() == 0 else max(0.0, float(entropies.mean()))


def first_token_share(probabilities: Tensor, allowed: Tensor) -> float | None:
    """Mean over heads and queries of the attention paid to the first token that the query may see: the "attention
    sink" of Xiao et al. 2024 (ICLR).

    probabilities [..., queries, keys]; allowed, of a shape that broadcasts to it, is True where a query may look. A
    query that may see nothing is left out; None if none remains.
    """
    allowed = allowed.expand(probabilities.shape)
    first = allowed.to(torch.uint8).argmax(dim=-1, keepdim=True)  # [..., queries, 1]
    share = probabilities.detach().to(torch.float64).gather(-1, first).squeeze(-1)
    share = share[allowed.any(dim=-1) & torch.isfinite(share)]
    return None if share.numel() == 0 else min(1.0, float(share.mean()))
