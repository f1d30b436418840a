"""How much the numbers depend on the texts: a bootstrap over texts (Efron 1979; percentile intervals).

Whole texts are drawn with replacement, not tokens: the tokens of one text are not independent. What is resampled can be
made of sums over each text, so no cloud is taken apart again: the rank-one residual and the mean cosine of a resample
follow from the sums of its tokens, of their squares and of their directions.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sublayer.notation.program import Add
from sublayer.probe.measuring import Record, SectionMeasure
from sublayer.probe.sums import kind, stream_name

CONFIDENCE = 0.95
RESAMPLES = 1000
FEWEST = 8  # texts: fewer give no interval worth the name


@dataclass
class TermSamples:
    """One term of one + in every resample: [resamples], NaN where a number is not defined."""

    layer: int
    section: str
    value: str
    term: str
    kind: str
    stream: str
    ratio: Tensor
    change: dict[str, Tensor] = field(default_factory=dict)
    point: dict[str, float] = field(default_factory=dict)


class TextBootstrap:
    """Resamples the measures of sections whose rows belong to known texts.

    Args:
        texts: the text of each measured token, [n].
        resamples: how many.
        seed: of the draw; every section sees the same draws.
    """

    def __init__(self, texts: Tensor, resamples: int, seed: int) -> None:
        self.names, self.text = texts.unique(return_inverse=True)
        count = len(self.names)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(max(1, count), (resamples, max(1, count)), generator=generator)
        weights = torch.zeros(resamples, max(1, count), dtype=torch.float64)
        self.weights = weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))  # [resamples, texts]

    def __call__(self, measure: SectionMeasure, values: Mapping[str, Tensor]) -> list[TermSamples]:
        """The terms of every + of a section. Values are [n, d]."""
        found = []
        for step in measure.section.sums:
            if measure.there(step, values) and len(values[step.value]) == len(self.text):
                found += self._terms(measure, step, values)
        return found

    def _terms(self, measure: SectionMeasure, step: Add, values: Mapping[str, Tensor]) -> list[TermSamples]:
        section = measure.section
        assert step.stream is not None
        weighted = measure.weighted(step, values)
        stream = weighted[step.stream].double().norm(dim=1)
        after, without = measure.clouds(step, values)
        spread = self._spreads(after)
        found = []
        for value, rest in without.items():
            ratio = weighted[value].double().norm(dim=1) / stream
            one = TermSamples(
                measure.layer,
                measure.name,
                step.value,
                section.label(value),
                kind(section, value),
                stream_name(section, step.stream),
                self._medians(ratio),
            )
            one.point["ratio"] = float(torch.nanquantile(torch.where(torch.isfinite(ratio), ratio, torch.nan), 0.5))
            if rest is not None:
                lacking = self._spreads(rest)
                for name, (samples, point) in spread.items():
                    other, other_point = lacking[name]
                    one.change[name] = relative(samples, other)
                    one.point[name] = float(relative(torch.tensor(point), torch.tensor(other_point)))
            found.append(one)
        return found

    def _totals(self, x: Tensor) -> Tensor:
        """Sums over each text: [texts, columns]."""
        total = torch.zeros(self.weights.shape[1], x.shape[1], dtype=torch.float64)
        return total.index_add_(0, self.text, x)

    def _spreads(self, x: Tensor) -> dict[str, tuple[Tensor, float]]:
        """How spread out a cloud [n, d] is in each resample [resamples], and in the sample itself."""
        x = x.detach().cpu().double()
        length = x.norm(dim=1, keepdim=True)
        units = torch.where(length > 0, x / length.clamp_min(1e-300), 0.0)
        sums = self._totals(x)
        energy = self._totals(x.square().sum(1, keepdim=True))
        turned = self._totals(units)
        counts = self._totals(torch.cat([torch.ones_like(length), (length > 0).double()], dim=1))

        def residual(w: Tensor) -> Tensor:
            e, n = (w @ energy)[:, 0], (w @ counts)[:, 0]
            return (1 - (w @ sums).square().sum(1) / (n * e)).clamp_min(0.0).sqrt()

        def away(w: Tensor) -> Tensor:
            n = (w @ counts)[:, 1]
            return 1 - ((w @ turned).square().sum(1) - n) / (n * (n - 1))

        whole = torch.ones(1, self.weights.shape[1], dtype=torch.float64)
        return {
            "rank_one_residual": (residual(self.weights), float(residual(whole))),
            "mean_cosine": (away(self.weights), float(away(whole))),
        }

    def _medians(self, x: Tensor) -> Tensor:
        """The median of one number a token [n] in each resample."""
        kept = torch.isfinite(x)
        order = torch.where(kept, x, torch.inf).argsort()
        order = order[: int(kept.sum())]
        if not len(order):
            return torch.full((len(self.weights),), torch.nan)
        cumulative = self.weights[:, self.text[order]].cumsum(1)  # [resamples, n]
        half = cumulative[:, -1:] / 2
        place = torch.searchsorted(cumulative, half).clamp_max(len(order) - 1)
        return x[order][place[:, 0]].double()


def relative(with_term: Tensor, without: Tensor) -> Tensor:
    """(with - without) / max(|with|, |without|); 0 where both are zero."""
    larger = torch.maximum(with_term.abs(), without.abs())
    return torch.where(larger > 0, (with_term - without) / larger.clamp_min(1e-300), torch.zeros_like(larger))


def intervals(found: list[TermSamples], resamples: int, seed: int, texts: int) -> Record:
    """Percentile intervals of what was resampled.

    Returns:
        ``terms``: for each term of each + its ``ratio`` and its ``change`` of isotropy by the rank-one residual and by
        1 - mean cosine, each ``{"value", "low", "high"}``; ``median_layer``: the same of the median over layers, of the
        FFN's change and attention's ratio (the numbers that the two claims decide by). With fewer than ``FEWEST`` texts
        ``low`` and ``high`` are None and ``note`` says why.
    """
    enough = texts >= FEWEST

    def interval(samples: Tensor, point: float) -> Record:
        clear = samples[torch.isfinite(samples)].double()
        low = high = None
        if enough and len(clear):
            ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
            low, high = torch.quantile(clear, ends).tolist()
        return {"value": point if point == point else None, "low": low, "high": high}

    record: Record = {
        "method": "bootstrap over texts, percentile",
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "seed": seed,
        "texts": texts,
        "terms": [
            {
                "layer": t.layer,
                "section": t.section,
                "value": t.value,
                "term": t.term,
                "kind": t.kind,
                "stream": t.stream,
                "ratio": interval(t.ratio, t.point["ratio"]),
                "change": {name: interval(samples, t.point[name]) for name, samples in t.change.items()},
            }
            for t in found
        ],
        "median_layer": {},
    }
    if not enough:
        record["note"] = f"{texts} texts: an interval takes at least {FEWEST}"
    for made_by, name in (("ffn", "rank_one_residual"), ("attn", "ratio")):
        mine = [t for t in found if t.section == "block" and t.kind == made_by]
        mine = [t for t in mine if t.stream == "x"] or mine
        mine = [t for t in mine if name == "ratio" or name in t.change]
        if mine:
            samples = torch.stack([t.ratio if name == "ratio" else t.change[name] for t in mine]).double()
            # The mean of the two middle ones where the layers are even in number, as statistics.median has it.
            middle = torch.quantile(samples, 0.5, dim=0)
            point = statistics.median(t.point[name] for t in mine)
            record["median_layer"]["ffn_change" if made_by == "ffn" else "attention_ratio"] = interval(middle, point)
    return record
