"""Differences between designs over seeds, with Student t intervals, in pure Python.

Seeds are pairs: the same seed gives every design the same initial weights where they share them and the same batches,
so the difference of two designs is taken seed by seed, and its spread is usually smaller than that of either.

Nothing is dropped silently. A run without a finite loss is lost: it is counted in its design's row, it leaves the
means to the seeds that remain, and the row says so in words. One seed gives a difference and no interval.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Losses = Mapping[int, float | None]  # seed -> held-out loss; None, NaN or infinity: the run was lost

METHOD = (
    "Mean over seeds of (loss of the design - loss of the baseline) for the same seed; {confidence:.0%} Student t "
    "interval of that mean over the seeds both finished, not adjusted for the number of designs. Negative: the design "
    "is better."
)
ONE_SEED = "Only one seed finished in both: a difference, but no interval, so nothing is known about its noise."
NO_SEED = "No seed finished in both: no difference."


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution: the t with P(T <= t) = `probability`, for 1 or more degrees of freedom.

    Found by bisection on the distribution function, to about 12 digits; `probability` lies strictly between 0 and 1.
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"a probability lies strictly between 0 and 1: got {probability!r}")
    if degrees < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, that is 2 values: got {degrees!r}")
    if probability < 0.5:
        return -t_quantile(1.0 - probability, degrees)
    return _upper_t_quantile(probability, degrees)


@lru_cache(maxsize=256)
def _upper_t_quantile(probability: float, degrees: int) -> float:
    low, high = 0.0, 1.0
    while _t_cdf(high, degrees) < probability:
        low, high = high, 2.0 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if _t_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _t_cdf(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0, by the finite sums for integer degrees (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sin, cos = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    if degrees == 1:
        return 0.5 + angle / math.pi
    term = total = cos if odd else 1.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= (k - 1) / k * cos * cos
        total += term
    within = 2.0 / math.pi * (angle + sin * total) if odd else sin * total  # P(|T| <= t)
    return 0.5 + 0.5 * within


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and t interval of `n` values; None where `n` is too small for one."""

    n: int
    mean: float | None
    sd: float | None  # divisor n - 1; None for n < 2
    low: float | None
    high: float | None


def summary(values: Iterable[float], confidence: float = 0.95) -> Summary:
    """Mean of finite `values` and the interval that covers the true mean with `confidence` (normal errors).

    One value has a mean and nothing else; no value has nothing. A value that is not finite is an error: the caller
    decides what a lost run means.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence lies strictly between 0 and 1: got {confidence!r}")
    numbers = [float(v) for v in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"a summary is of finite numbers, got {numbers}: count lost runs apart from the others")
    n = len(numbers)
    if n == 0:
        return Summary(0, None, None, None, None)
    mean = math.fsum(numbers) / n
    if n == 1:
        return Summary(1, mean, None, None, None)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in numbers) / (n - 1))
    half = t_quantile(0.5 + confidence / 2, n - 1) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


@dataclass(frozen=True)
class Paired:
    """A design against a baseline over the seeds that both finished."""

    seeds: tuple[int, ...]  # used: finished in both
    lost: tuple[int, ...]  # lost by the design
    lost_baseline: tuple[int, ...]  # lost by the baseline
    difference: float | None  # mean of design - baseline
    low: float | None
    high: float | None
    note: str | None  # what a reader must know about this row

    @property
    def clear(self) -> bool:
        """Whether the interval exists and leaves zero outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def finished(losses: Losses) -> dict[int, float]:
    """The seeds with a finite loss, in order."""
    return {s: float(v) for s, v in sorted(losses.items()) if v is not None and math.isfinite(v)}


def paired(baseline: Losses, other: Losses, confidence: float = 0.95) -> Paired:
    """The difference `other - baseline` seed by seed, and its interval.

    A seed lost on either side cannot be paired and is named. When a design loses runs, the mean over those that remain
    flatters it (the worst are missing), and the note says so.
    """
    first, second = finished(baseline), finished(other)
    common = tuple(s for s in first if s in second)
    result = summary((second[s] - first[s] for s in common), confidence)
    lost = tuple(sorted(s for s in other if s not in second))
    lost_baseline = tuple(sorted(s for s in baseline if s not in first))
    notes = []
    if lost:
        notes.append(f"Lost {_seeds(lost)}: its mean is over the runs that survived and flatters it.")
    if lost_baseline:
        notes.append(f"The baseline lost {_seeds(lost_baseline)}, so it is not compared there.")
    if alone := sorted((set(first) ^ set(second)) - set(lost) - set(lost_baseline)):
        notes.append(f"Run in one of the two only: {_seeds(alone)}.")
    if len(common) < 2:
        notes.append(ONE_SEED if common else NO_SEED)
    return Paired(common, lost, lost_baseline, result.mean, result.low, result.high, " ".join(notes) or None)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def losses_by_seed(runs: Iterable[Mapping[str, Any]], design: str, lr: float | None = None) -> dict[int, float | None]:
    """Seed -> `eval_loss` of one design in the `runs` of results.json; None for a run whose status is not "ok".

    With several learning rates in the study, `lr` says which; two runs of one seed are otherwise an error.
    """
    found: dict[int, float | None] = {}
    for run in runs:
        if run["design"] != design or (lr is not None and run["lr"] != lr):
            continue
        if run["seed"] in found:
            raise ValueError(
                f"seed {run['seed']} of {design!r} was run more than once: choose one learning rate with lr="
            )
        found[run["seed"]] = run["eval_loss"] if run["status"] == "ok" else None
    return found


def comparison(losses: Mapping[str, Losses], baseline: str | None = None, confidence: float = 0.95) -> dict[str, Any]:
    """The `comparison` of results.json: one row a design, in the order given, against `baseline` (default: the first).

    Each row has `mean`, `sd` and `n` over the seeds that finished, `lost`, the paired `difference` with `low` and
    `high`, the `seeds` it rests on, and a `note` in words or None. The baseline's own difference is None.
    """
    if not losses:
        raise ValueError("nothing to compare: no design was given")
    first = next(iter(losses)) if baseline is None else baseline
    if first not in losses:
        raise ValueError(f"the baseline is one of {', '.join(losses)}: got {first!r}")
    rows = []
    for design, of_design in losses.items():
        own = summary(finished(of_design).values(), confidence)
        against = paired(losses[first], of_design, confidence)
        is_baseline = design == first
        note = against.note
        if is_baseline:
            note = f"Lost {_seeds(against.lost)}." if against.lost else None
        rows.append(
            {
                "design": design,
                "mean": own.mean,
                "sd": own.sd,
                "n": own.n,
                "lost": len(against.lost),
                "difference": None if is_baseline else against.difference,
                "low": None if is_baseline else against.low,
                "high": None if is_baseline else against.high,
                "seeds": list(against.seeds),
                "note": note,
            }
        )
    return {
        "baseline": first,
        "confidence": confidence,
        "method": METHOD.format(confidence=confidence),
        "rows": rows,
    }


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of paired values; ties get their mean rank. NaN where one side does not vary."""
    left, right = _ranks(a), _ranks(b)
    middle = (len(left) + 1) / 2
    top = math.fsum((x - middle) * (y - middle) for x, y in zip(left, right, strict=True))
    below = math.sqrt(math.fsum((x - middle) ** 2 for x in left) * math.fsum((y - middle) ** 2 for y in right))
    return top / below if below else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: k for k, value in reversed(list(enumerate(ordered, 1)))}
    return [first[v] + (ordered.count(v) - 1) / 2 for v in values]
