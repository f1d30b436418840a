"""Two claims about Transformer blocks, each answered for every design by one rule that is written down.

ffn-isotropy: the FFN's term keeps token embeddings isotropic. attention-small: what attention adds is small beside
the stream it is added to. Both come from the parallel-attention-and-FFN design (Sonkar & Baraniuk 2023,
arXiv 2305.13297); the measures are named by their own sources in `sublayer.probe.measures`, and no more is claimed
than that these numbers were measured by these rules.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sublayer.study.stats import summary

Answer = Literal["holds", "does not", "unclear"]
Vote = Literal["yes", "no", "mixed"]

MARGIN = 0.02  # of the decisive measure: a relative change below 2 % is called none
SMALL = 1 / 3  # a term this long, beside its stream, turns it by at most asin(1/3) = 19.5 degrees
AGREE = 2 / 3  # share of a run's layers that must say the same
CONFIDENCE = 0.95

DECISIVE = "rank_one_residual"
WITNESSES = ("mean_cosine", "iso_score", "effective_rank")
# how isotropic, as a number that is larger for a more isotropic cloud and zero for a collapsed one
_SPREAD: dict[str, Callable[[float], float]] = {
    "rank_one_residual": lambda v: v,
    "mean_cosine": lambda v: 1.0 - v,
    "iso_score": lambda v: v,
    "effective_rank": lambda v: v - 1.0,
    "partition_ratio": lambda v: v,
}
_NAMES = {
    "rank_one_residual": "rank-one residual",
    "mean_cosine": "1 - mean cosine",
    "iso_score": "IsoScore",
    "effective_rank": "effective rank - 1",
    "partition_ratio": "partition ratio",
}

FFN_QUESTION = "Does the FFN keep the token embeddings isotropic?"
FFN_RULE = (
    "At every + that adds the FFN's term to x, the isotropy of the sum is compared with that of the same sum "
    "with this term left out (both through the norm that follows, where one does), per layer and run, on "
    "held-out text. The change is (with - without) / (the larger of the two): +1 means all isotropy comes from "
    "the FFN, 0 none, negative that the FFN takes some away. Decisive is the rank-one residual ||X - 1 "
    "m^T||/||X||: the claim is that without the FFN tokens collapse to one vector, and that is what it measures; "
    "it lies in 0 .. 1 and ignores scale and rotation. Measures of isotropy disagree, so three more, as "
    "scale-free, are witnesses: 1 - mean cosine, IsoScore and effective rank - 1 (the cosine nearly repeats the "
    "residual, so one of the other two must agree). The partition ratio depends on the stream's length and is "
    f"shown only. A run says yes when the median over layers of the decisive change is at least {MARGIN:.0%}, at "
    f"least 2/3 of the layers are above zero, and the medians of at least two witnesses reach {MARGIN:.0%} too; "
    f"no when that median and at least 2/3 of the layers are below {MARGIN:.0%} and so are the medians of at "
    "least two witnesses; otherwise its layers or measures disagree. Holds: every run says yes. Does not: every "
    "run says no. Unclear: anything else, and also when three or more runs leave the threshold inside their 95% "
    "interval. The term is left out at one + of a trained model, nothing is retrained: this is the FFN's local "
    "part, not what a model without FFNs would become."
)
ATTENTION_QUESTION = "Is what attention adds small beside the stream it is added to?"
ATTENTION_RULE = (
    "At every + that adds attention's term to x, ||term|| / ||stream|| is taken for each token of held-out text, "
    "with their coefficients and after any norm on the branch; its median over tokens is the layer's number. "
    "Small is at most 1/3: such a term turns the stream by at most 19.5 degrees. A run says yes when at least "
    "2/3 of its layers are at most 1/3 and none is above 1; no when at least 2/3 of its layers are above 1/3; "
    "otherwise its layers disagree. Holds: every run says yes. Does not: every run says no. Unclear: anything "
    "else, and also when three or more runs leave 1/3 inside the 95% interval of the median layer."
)


@dataclass
class _Evidence:
    """What one run says: one decisive number per + that the claim looks at, and the witnesses' medians."""

    points: list[tuple[int, float]]  # (layer, number)
    witnesses: dict[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return statistics.median(v for _, v in self.points)

    def share(self, holds: Callable[[float], bool]) -> float:
        return sum(holds(v) for _, v in self.points) / len(self.points)


def answer_claims(
    runs: Sequence[Mapping[str, Any]], designs: Iterable[str], lrs: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """The `claims` of results.json from its `runs`: two claims, each with `question`, `rule` and one answer a design.

    `lrs` says which learning rate stands for a design when several were run; without it every run counts. An answer
    has `design`, `answer` ("holds", "does not", "unclear"), `value` (mean over runs of the median layer), `low` and
    `high` (95% t interval over runs, None for one run), `detail` in words, `layers` (the mean over runs per layer),
    and for ffn-isotropy `measures` (the median change by every measure). A design whose equation has no such term, or
    with no measured run, is "unclear" with the reason.
    """
    chosen = [run for run in runs if lrs is None or lrs.get(run["design"], run["lr"]) == run["lr"]]
    by_design = {design: [run for run in chosen if run["design"] == design] for design in designs}
    return [
        {
            "claim": "ffn-isotropy",
            "question": FFN_QUESTION,
            "rule": FFN_RULE,
            "answers": [
                _answer(d, of, _ffn_evidence, _ffn_vote, MARGIN, "the FFN", "ffn") for d, of in by_design.items()
            ],
        },
        {
            "claim": "attention-small",
            "question": ATTENTION_QUESTION,
            "rule": ATTENTION_RULE,
            "answers": [
                _answer(d, of, _attention_evidence, _attention_vote, SMALL, "attention", "attn")
                for d, of in by_design.items()
            ],
        },
    ]


def relative_change(with_term: float, without: float) -> float:
    """(with - without) / max(|with|, |without|), in -1 .. 1 for numbers of one sign; 0 when both are zero."""
    larger = max(abs(with_term), abs(without))
    return 0.0 if larger == 0.0 else (with_term - without) / larger


def _terms(record: Mapping[str, Any], kind: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(sum, term) for every term of one kind that a `+` of a layer adds to the stream x; where none is added to x, to
    whatever stream it is added to (a design that carries several adds most terms to each of them)."""
    found = [
        (of_sum, term)
        for of_sum in record["sums"]
        for term in of_sum["terms"]
        if of_sum["section"] == "block" and term["kind"] == kind
    ]
    return [pair for pair in found if pair[0]["stream"] == "x"] or found


def _ffn_evidence(record: Mapping[str, Any]) -> _Evidence:
    changes: dict[str, list[tuple[int, float]]] = {name: [] for name in _SPREAD}
    for of_sum, term in _terms(record, "ffn"):
        for name, spread in _SPREAD.items():
            after, without = of_sum["after"].get(name), term["without"].get(name)
            if after is not None and without is not None:
                changes[name].append((of_sum["layer"], relative_change(spread(after), spread(without))))
    medians = {name: statistics.median(v for _, v in points) for name, points in changes.items() if points}
    return _Evidence(changes[DECISIVE], medians)


def _attention_evidence(record: Mapping[str, Any]) -> _Evidence:
    found = ((of_sum["layer"], term["ratio"].get("median")) for of_sum, term in _terms(record, "attn"))
    return _Evidence([(layer, ratio) for layer, ratio in found if ratio is not None])


def _ffn_vote(evidence: _Evidence) -> Vote:
    witnesses = [evidence.witnesses[name] for name in WITNESSES if name in evidence.witnesses]
    above = sum(w >= MARGIN for w in witnesses)
    if evidence.value >= MARGIN and evidence.share(lambda v: v > 0) >= AGREE and above >= 2:
        return "yes"
    below = sum(w < MARGIN for w in witnesses)
    if evidence.value < MARGIN and evidence.share(lambda v: v < MARGIN) >= AGREE and below >= 2:
        return "no"
    return "mixed"


def _attention_vote(evidence: _Evidence) -> Vote:
    if evidence.share(lambda v: v <= SMALL) >= AGREE and all(v <= 1 for _, v in evidence.points):
        return "yes"
    return "no" if evidence.share(lambda v: v > SMALL) >= AGREE else "mixed"


def _answer(
    design: str,
    runs: Sequence[Mapping[str, Any]],
    gather: Callable[[Mapping[str, Any]], _Evidence],
    vote: Callable[[_Evidence], Vote],
    threshold: float,
    who: str,
    kind: str,
) -> dict[str, Any]:
    measured = [run for run in runs if run["status"] == "ok" and run.get("measures")]
    lost = sorted(run["seed"] for run in runs if run["status"] != "ok")
    evidence = [found for run in measured if (found := gather(run["measures"])).points]
    if not evidence:
        if measured:
            adds = any(_terms(run["measures"], kind) for run in measured)
            reason = (
                f"The numbers at its + are not defined (zero or infinite vectors), so {who} cannot be judged."
                if adds
                else f"No + of its equation adds a term of {who} alone to the stream, so there is nothing to leave out "
                "or to compare."
            )
        else:
            reason = "No run of it was measured."
        reason = " ".join(filter(None, [reason, _lost(lost)]))
        return {"design": design, "answer": "unclear", "value": None, "low": None, "high": None, "detail": reason}

    votes = [vote(found) for found in evidence]
    interval = summary((found.value for found in evidence), CONFIDENCE)
    low, high = interval.low, interval.high
    straddles = len(evidence) >= 3 and low is not None and high is not None and low <= threshold <= high
    answer: Answer = "unclear"
    if not straddles and set(votes) == {"yes"}:
        answer = "holds"
    elif not straddles and set(votes) == {"no"}:
        answer = "does not"

    layers = _mean_by_layer(evidence)
    measures = _mean_by_measure(evidence)
    percent = kind == "ffn"
    detail = [_of_layers(layers, percent, worst=min if percent else max)]
    if measures:
        shown = [
            f"{_NAMES[name]} {measures[name]:+.1%}" for name in (*WITNESSES, "partition_ratio") if name in measures
        ]
        detail.append(f"Median change by the other measures: {', '.join(shown)}.")
    if answer == "unclear":
        detail.append(_why_unclear(votes, straddles, measures, percent))
    if len(evidence) == 1:
        detail.append("One run: no interval over seeds.")
    if lost:
        detail.append(_lost(lost))
    result: dict[str, Any] = {"design": design, "answer": answer, "value": interval.mean, "low": low, "high": high}
    result["detail"] = " ".join(detail)
    result["layers"] = [{"layer": layer, "value": value} for layer, value in layers.items()]
    if measures:
        result["measures"] = measures
    return result


def _mean_by_layer(evidence: Sequence[_Evidence]) -> dict[int, float]:
    """Layer -> mean over runs (and over the sums of the layer, where it has several)."""
    gathered: dict[int, list[float]] = {}
    for found in evidence:
        for layer, value in found.points:
            gathered.setdefault(layer, []).append(value)
    return {layer: math.fsum(values) / len(values) for layer, values in sorted(gathered.items())}


def _mean_by_measure(evidence: Sequence[_Evidence]) -> dict[str, float]:
    """Measure -> mean over runs of its median change over layers."""
    gathered: dict[str, list[float]] = {}
    for found in evidence:
        for name, value in found.witnesses.items():
            gathered.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in gathered.items()}


def _of_layers(layers: Mapping[int, float], percent: bool, worst: Callable[..., int]) -> str:
    def show(value: float) -> str:
        return f"{value:+.1%}" if percent else f"{value:.2f}"

    layer = worst(layers, key=lambda key: layers[key])
    what = "Rank-one residual with the FFN's term against without" if percent else "Attention's term over the stream"
    return (
        f"{what}: {show(min(layers.values()))} to {show(max(layers.values()))} over layers; "
        f"the worst is layer {layer} (counted from 0) with {show(layers[layer])}."
    )


def _why_unclear(votes: Sequence[Vote], straddles: bool, measures: Mapping[str, float], percent: bool) -> str:
    if straddles:
        return "Unclear because the interval over runs contains the threshold."
    if len(set(votes)) > 1:
        return f"Unclear because runs disagree ({', '.join(f'{votes.count(v)} {v}' for v in sorted(set(votes)))})."
    agree = [measures[name] >= MARGIN for name in (DECISIVE, *WITNESSES) if name in measures]
    if percent and len(set(agree)) > 1:
        return "Unclear because the measures disagree."
    return "Unclear because the layers disagree."


def _lost(seeds: Sequence[int]) -> str:
    if not seeds:
        return ""
    return f"Lost and not in these numbers: seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."
