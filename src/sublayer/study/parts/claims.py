"""Part `claims`: the two claims on trained models, layer by layer, with intervals over text. Imports no torch.

Each model is measured by `sublayer probe MODEL --intervals` in a process of its own. The rules that answer a claim are
those of a training study (`sublayer.study.claims`), on one model. What the interval adds: an answer is **firm** where
the whole 95% bootstrap interval of the median layer lies on one side of the rule's threshold, and **open** where it
contains it. The bootstrap is over texts, so it says how far other text of the same kind could move the number, not how
far another training run could.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sublayer.study.claims import MARGIN, SMALL
from sublayer.study.errors import StudyError
from sublayer.study.parts.checkpoints import check_sources, gathered
from sublayer.study.parts.part import Part, Result, Setting
from sublayer.train.frame import cores

Json = dict[str, Any]
# claim -> (its number in the record's intervals, the kind of term, threshold)
_NUMBERS = {
    "ffn-isotropy": ("ffn_change", "ffn", MARGIN),
    "attention-small": ("attention_ratio", "attn", SMALL),
}


class ClaimsOnText(Part):
    """Settings: `checkpoints` (label -> folder, Hub id or package:NAME/FOLDER) or `of`, `data`, `tokens`, `seq`,
    `batch`, `max_tokens`, `seed`."""

    def check(self) -> None:
        """Settings must fit."""
        self.only("checkpoints", "of", "data", "tokens", "seq", "batch", "max_tokens", "seed")
        check_sources(self)
        self.data = self.take("data", str, "docs")
        if (self.here / self.data).exists():
            self.data = str((self.here / self.data).resolve())
        self.options: dict[str, int] = {
            key: self.take(key, int, default)
            for key, default in (("tokens", 32768), ("seq", 128), ("batch", 16), ("max_tokens", 4096), ("seed", 0))
        }

    def run(self, at: Setting) -> Result:
        """Measure what is not measured yet, and answer."""
        result = Result(details={"probes": {}})
        for label, checkpoint in gathered(self, at).items():
            place = at.folder / label
            if not (place / "probe.json").exists():
                at.say(f"{self.name}: {label}")
                self._probe(checkpoint, place)
            record: Json = json.loads((place / "probe.json").read_text(encoding="utf-8"))
            self._show(label, record, result)
            result.facts.setdefault("pages", {})[label] = f"{label}/probe.html"
            result.facts.setdefault("data", {})[label] = record["data"]
            result.details["probes"][label] = {
                k: record.get(k) for k in ("tokens", "tokens_seen", "intervals", "claims")
            }
        result.facts |= {"seeds": [self.options["seed"]], "device": "cpu", "threads": cores()}  # the probe's own
        result.caveats.append(
            "The intervals are over text, for one trained model each: they say nothing about another training run."
        )
        return result

    def _probe(self, checkpoint: str, place: Path) -> None:
        line = [sys.executable, "-m", "sublayer", "probe", checkpoint, "--data", self.data, "--intervals"]
        line += [word for key, value in self.options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        done = subprocess.run([*line, "--out", str(place)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise StudyError(f"{' '.join(line[1:])} failed: {done.stderr.strip()[-500:] or done.returncode}")

    def _show(self, label: str, record: Json, result: Result) -> None:
        spans = record["intervals"]
        for claim in record["claims"]:
            name, kind, threshold = _NUMBERS[claim["claim"]]
            (answer,) = claim["answers"]
            middle = spans["median_layer"].get(name)
            if middle is None:
                result.verdicts.append(f"{label}: {claim['question']} No term of that kind was measured.")
                continue
            measure = "ratio" if kind == "attn" else "rank_one_residual"
            layers = []
            for term in spans["terms"]:
                if term["kind"] == kind and term["section"] == "block":
                    found = term["ratio"] if kind == "attn" else term["change"].get(measure)
                    if found is not None:
                        layers.append((term["layer"], term["term"], found))
            result.verdicts.append(f"{label}: {claim['question']} {_said(answer, middle, threshold, spans)}")
            what = "||attn|| / ||stream||" if kind == "attn" else "change of the rank-one residual by the FFN"
            result.tables.append(
                {
                    "title": f"{label}: {what}, layer by layer",
                    "note": f"95% bootstrap interval over {spans['texts']} texts. {claim['rule']}",
                    "head": ["layer", "term", "value", "low", "high"],
                    "rows": [[layer, term, f["value"], f["low"], f["high"]] for layer, term, f in layers],
                }
            )
            points = [{"x": layer, "y": f["value"], "low": f["low"], "high": f["high"]} for layer, _, f in layers]
            result.charts.append(
                {
                    "title": f"{label}: {what}", "note": "With its 95% interval over text.", "x": "layer (from 0)",
                    "y": what, "x_log": False, "y_log": False, "series": [{"name": label, "points": points}],
                    "marks": [{"y": threshold, "name": "threshold of the rule"}],
                }
            )  # fmt: skip


def _said(answer: Json, middle: Json, threshold: float, spans: Json) -> str:
    """The answer, and whether text could have turned it."""
    words = {"holds": "Yes", "does not": "No"}.get(answer["answer"], "Unclear")
    low, high = middle["low"], middle["high"]
    if low is None or high is None:
        return f"{words} (median layer {middle['value']:.3f}; too few texts for an interval). {answer['detail']}"
    firm = "firm" if low > threshold or high < threshold else "open"
    return (
        f"{words}, {firm}: median layer {middle['value']:.3f} (95% {low:.3f} .. {high:.3f} over {spans['texts']} "
        f"texts), threshold {threshold:.2f}. {answer['detail']}"
    )
