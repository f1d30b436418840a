"""Every measure against an implementation that shares no code with it, then its invariances and its edges."""

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sublayer.probe import measures as m

SCALE_FREE = ("mean_cosine", "iso_score", "rank_one_residual", "effective_rank")


def cloud(seed: int, n: int, d: int, mean: float = 0.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(d, generator=generator, dtype=torch.float64) + 0.05
    shift = mean * torch.randn(d, generator=generator, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) * spread + shift).to(dtype)


shapes = st.tuples(st.integers(2, 24), st.integers(2, 24))
clouds = st.builds(
    lambda seed, shape, mean: cloud(seed, *shape, mean=mean),
    st.integers(0, 10_000),
    shapes,
    st.sampled_from([0.0, 0.3, 2.0]),
)


# --- oracles: numpy and loops, straight from the papers -----------------------------------------------------------


def oracle_mean_cosine(x: np.ndarray) -> float:
    return float(np.mean([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in combinations(x, 2)]))


def oracle_iso_score(x: np.ndarray) -> float:
    """The paper's algorithm, step by step."""
    d = x.shape[1]
    along = x @ np.linalg.svd(x - x.mean(0), full_matrices=True)[2].T  # principal components
    variances = np.diag(np.cov(along.T))
    normalised = math.sqrt(d) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1.0) / math.sqrt(2 * (d - math.sqrt(d)))
    used = (d - defect**2 * (d - math.sqrt(d))) ** 2 / d**2
    return float((d * used - 1) / (d - 1))


def oracle_partition_ratio(x: np.ndarray) -> float:
    vectors = np.linalg.svd(x, full_matrices=True)[2]  # rows: all d eigenvectors of X^T X
    z = [sum(math.exp(float(sign * c @ row)) for row in x) for c in vectors for sign in (1, -1)]
    return min(z) / max(z)


def oracle_effective_rank(x: np.ndarray) -> float:
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum()
    return math.exp(-sum(v * math.log(v) for v in p if v > 0))


ORACLES = {
    "mean_cosine": oracle_mean_cosine,
    "iso_score": oracle_iso_score,
    "partition_ratio": oracle_partition_ratio,
    "rank_one_residual": lambda x: float(np.linalg.norm(x - x.mean(0)) / np.linalg.norm(x)),
    "effective_rank": oracle_effective_rank,
}


@settings(max_examples=60, deadline=None)
@given(clouds)
def test_isotropy_equals_the_oracles(x: torch.Tensor) -> None:
    measured = m.isotropy(x)
    assert tuple(measured) == m.ISOTROPY_MEASURES
    for name, oracle in ORACLES.items():
        assert measured[name] == pytest.approx(oracle(x.numpy()), rel=1e-7, abs=1e-9), name
        assert measured[name] == getattr(m, name)(x), name


@pytest.mark.parametrize("shape", [(300, 8), (64, 64), (200, 100), (20, 50)])
def test_iso_score_equals_the_authors_package(shape: tuple[int, int]) -> None:
    package = pytest.importorskip("IsoScore.IsoScore", reason="the authors' package IsoScore is not installed")
    x = cloud(1, *shape, mean=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = float(package.IsoScore(x.numpy()))  # takes sqrt(d) in float32
    assert m.iso_score(x) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_composite_norm_is_the_paper_s(shape: tuple[int, int]) -> None:
    x = cloud(2, *shape, mean=1.0)

    def size(a: np.ndarray) -> float:
        return math.sqrt(np.linalg.norm(a, 1) * np.linalg.norm(a, np.inf))

    centred = (x - x.mean(0)).numpy()
    assert m.rank_one_residual(x, norm="composite") == pytest.approx(size(centred) / size(x.numpy()))
    with pytest.raises(ValueError, match="frobenius"):
        m.rank_one_residual(x, norm="nuclear")  # type: ignore[arg-type]


# --- invariances ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(clouds, st.integers(0, 1000), st.sampled_from([1e-12, 0.03, 7.0, 1e12]))
def test_rotation_order_and_scale_do_not_matter(x: torch.Tensor, seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator, dtype=x.dtype)).Q
    order = torch.randperm(x.shape[0], generator=generator)
    plain, turned, scaled = m.isotropy(x), m.isotropy((x @ rotation)[order]), m.isotropy(x * factor)
    for name in m.ISOTROPY_MEASURES:
        assert turned[name] == pytest.approx(plain[name], rel=1e-6, abs=1e-8), name
    for name in SCALE_FREE:
        assert scaled[name] == pytest.approx(plain[name], rel=1e-6, abs=1e-8), name


@settings(max_examples=40, deadline=None)
@given(clouds)
def test_ranges(x: torch.Tensor) -> None:
    n, d = x.shape
    got = m.isotropy(x)
    assert -1 / (n - 1) <= got["mean_cosine"] <= 1
    assert 0 <= got["iso_score"] <= 1
    assert 0 <= got["partition_ratio"] <= 1
    assert 0 <= got["rank_one_residual"] <= 1
    assert 1 <= got["effective_rank"] <= min(n, d) + 1e-9
    if n <= d:
        assert got["iso_score"] <= (n - 2) / (d - 1) + 1e-9


def test_an_isotropic_gaussian_is_isotropic() -> None:
    x = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    got = m.isotropy(x)
    assert abs(got["mean_cosine"]) < 1e-3
    assert got["iso_score"] > 0.99
    assert got["partition_ratio"] > 0.9
    assert got["rank_one_residual"] > 0.99
    assert got["effective_rank"] > 15.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_equal_tokens_are_the_collapse(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    token = torch.randn(shape[1], generator=torch.Generator().manual_seed(3)).to(dtype)
    got = m.isotropy(token.expand(shape))
    assert got["mean_cosine"] == pytest.approx(1.0)
    assert got["iso_score"] == 0.0
    assert got["rank_one_residual"] == 0.0
    assert got["effective_rank"] == pytest.approx(1.0)
    assert 0 <= got["partition_ratio"] < 1


def test_one_direction_of_variance_scores_zero() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.outer(torch.randn(50, generator=generator), torch.randn(12, generator=generator)).double()
    got = m.isotropy(x)
    assert got["iso_score"] == pytest.approx(0.0, abs=1e-12)
    assert got["effective_rank"] == pytest.approx(1.0)


def test_iso_score_counts_dimensions() -> None:
    """k equal variances of d score (k - 1)/(d - 1), whatever the mean."""
    corners = torch.cat([torch.eye(8, dtype=torch.float64), -torch.eye(8, dtype=torch.float64)])
    for k in range(1, 9):
        x = corners.clone()
        x[:, k:] = 5.0
        assert m.iso_score(x) == pytest.approx((k - 1) / 7, abs=1e-12)


def test_a_cone_is_where_the_measures_disagree() -> None:
    """Far from the origin with even spread: IsoScore says isotropic, the cosine and the residual say collapsed."""
    x = torch.randn(5000, 16, generator=torch.Generator().manual_seed(5)).double() + 20.0
    got = m.isotropy(x)
    assert got["iso_score"] > 0.98
    assert got["mean_cosine"] > 0.99
    assert got["rank_one_residual"] < 0.06


def test_residual_and_cosine_agree_for_unit_vectors() -> None:
    x = torch.nn.functional.normalize(cloud(6, 30, 9, mean=1.0), dim=1)
    n = 30
    assert m.mean_cosine(x) == pytest.approx((n * (1 - m.rank_one_residual(x) ** 2) - 1) / (n - 1))


def test_long_vectors_do_not_overflow_the_partition_function() -> None:
    x = cloud(7, 50, 6) * 1e4
    assert math.exp(-700) >= m.partition_ratio(x) >= 0.0
    assert m.partition_ratio(torch.zeros(5, 3)) == 1.0
    assert m.partition_ratio(torch.full((4, 4), 1.5e308, dtype=torch.float64)) is None


# --- edges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(0, 4),
        torch.ones(1, 4),
        torch.ones(4, 0),
        torch.tensor([[1.0, float("nan")], [0.0, 1.0]]),
        torch.tensor([[1.0, float("inf")], [0.0, 1.0]]),
    ],
)
def test_undefined_is_none_for_every_measure(x: torch.Tensor) -> None:
    assert m.isotropy(x) == dict.fromkeys(m.ISOTROPY_MEASURES)
    for name in m.ISOTROPY_MEASURES:
        assert getattr(m, name)(x) is None
    assert m.rank_one_residual(x, norm="composite") is None


def test_zero_vectors() -> None:
    zero = m.isotropy(torch.zeros(5, 4))
    assert zero == {
        "mean_cosine": None,
        "iso_score": 0.0,
        "partition_ratio": 1.0,
        "rank_one_residual": None,
        "effective_rank": None,
    }
    assert m.rank_one_residual(torch.zeros(5, 4), norm="composite") is None
    x = cloud(8, 10, 4, mean=1.0)
    with_zero = torch.cat([x, torch.zeros(1, 4, dtype=x.dtype)])
    assert m.mean_cosine(with_zero) == pytest.approx(m.mean_cosine(x))
    assert m.mean_cosine(with_zero[-2:]) is None
    assert m.isotropy(torch.ones(3, 1))["iso_score"] is None


def test_a_stack_of_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*flatten"):
        m.isotropy(torch.zeros(2, 3, 4))


@settings(max_examples=60, deadline=None)
@given(
    shapes,
    st.integers(0, 100),
    st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e300]),
    st.sampled_from(["zero row", "repeat", "big", "none"]),
)
def test_nothing_is_ever_nan(shape: tuple[int, int], seed: int, factor: float, edit: str) -> None:
    x = cloud(seed, *shape) * factor
    if edit == "zero row":
        x[0] = 0
    elif edit == "repeat":
        x[:] = x[0].clone()
    elif edit == "big":
        x[:, 0] = 1e308
    for name, value in m.isotropy(x).items():
        assert value is None or math.isfinite(value), name


def test_quartiles_norms_ratios_and_cosines() -> None:
    stream = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    term = torch.tensor([[0.0, 5.0], [0.0, -1.0], [0.0, 2.0], [1.0, 1.0]])
    assert m.stream_norm(stream)["median"] == pytest.approx(1.5)
    assert m.term_ratio(term, stream) == pytest.approx({"q25": 0.75, "median": 1.0, "q75": 1.5})
    assert m.cosine(term, stream) == pytest.approx((4 / 5 - 1 + 0) / 3)
    assert m.cosine(term[3:], stream[3:]) is None
    nothing = {"q25": None, "median": None, "q75": None}
    assert m.term_ratio(term[3:], stream[3:]) == nothing
    assert m.quartiles(torch.tensor([float("nan"), float("inf")])) == nothing
    assert m.quartiles(torch.tensor([float("nan"), 2.0]))["q25"] == 2.0


def test_attention_entropy_and_first_token() -> None:
    causal = torch.tril(torch.ones(4, 4, dtype=torch.bool))
    uniform = causal.double() / causal.sum(-1, keepdim=True)
    p = uniform.expand(2, 3, 4, 4)  # batch, heads, queries, keys
    assert m.attention_entropy(p) == pytest.approx(sum(map(math.log, (1, 2, 3, 4))) / 4)
    assert m.first_token_share(p, causal) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    left_padded = causal.clone()
    left_padded[:, 0] = False  # key 0 is padding: the first token that may be seen is 1, and query 0 sees nothing
    p = left_padded.double() / left_padded.sum(-1, keepdim=True)  # row 0 is NaN
    assert m.attention_entropy(p) == pytest.approx(sum(map(math.log, (1, 2, 3))) / 3)
    assert m.first_token_share(p, left_padded) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert m.attention_entropy(torch.eye(3)) == 0.0
    assert m.attention_entropy(torch.full((2, 2), float("nan"))) is None
    assert m.first_token_share(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)) is None
