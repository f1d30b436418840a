"""Part `convert`: a checkpoint under another wiring, at once and after some training on text. Imports no torch.

The training is distillation from the unchanged model (after Sanh et al. 2019, 1910.01108, and Jiao et al. 2020,
1909.10351): on plain text, the squared distance of every layer's output from that of the original, relative to the
original's squared length, averaged over layers and tokens. It needs no labels and no head.
"""

import json
from pathlib import Path
from typing import Any

from sublayer.notation import parse
from sublayer.study.errors import StudyError
from sublayer.study.parts.checkpoints import MADE, named
from sublayer.study.parts.part import Part, Result, Setting
from sublayer.study.pool import Work, run_all
from sublayer.whole_files import write_atomically

Json = dict[str, Any]
_RECOVER = {
    "data": "docs", "steps": 100, "batch": 8, "seq": 64, "lr": 3e-4, "warmup": 0.1, "seed": 0, "held_out": 64,
    "threads": 1,
}  # fmt: skip


class Convert(Part):
    """Settings: `checkpoint`, `label` (its name in the tables), `to` (a design or several), `recover` (settings of the
    training: data, steps, batch, seq, lr, warmup, seed, held_out rows, threads)."""

    def check(self) -> None:
        """Designs and settings must fit."""
        self.only("checkpoint", "label", "to", "recover")
        given: Any = self.take("to", (str, list), need=True)
        self.to: list[str] = [given] if isinstance(given, str) else given
        for design in self.to:
            parse(design)
        self.source = named(self.take("checkpoint", str, need=True), self.here)
        self.label = self.take("label", str, Path(self.source).name)
        recover = self.take("recover", dict, {})
        for key in recover:
            if key not in _RECOVER:
                raise StudyError(f"recover of part {self.name!r} has no setting {key!r}; it has {', '.join(_RECOVER)}")
        self.recover: Json = {**_RECOVER, **recover}

    def run(self, at: Setting) -> Result:
        """Convert and train what is not there yet."""
        work, places = [], {}
        for number, design in enumerate(self.to):
            name = parse(design).name or f"design-{number + 1}"
            place = places[name] = at.folder / name
            if not (place / "convert.json").exists():
                place.mkdir(parents=True, exist_ok=True)
                order = {"checkpoint": self.source, "to": design, "recover": self.recover}
                write_atomically(place / "order.json", json.dumps(order, indent=1))
                work.append(
                    Work(
                        f"{self.label} to {name}",
                        "sublayer.study.parts.convert_worker",
                        (str(place),),
                        place / "log.txt",
                    )
                )
        codes = run_all(work, at.jobs or 1, at.say)
        failed = [name for name, code in codes.items() if code]
        if failed:
            raise StudyError(f"{', '.join(failed)} failed; the reason is in log.txt under {at.folder}")
        return self._gather(places)

    def _gather(self, places: dict[str, Path]) -> Result:
        result = Result(details={MADE: {}, "conversions": {}})
        table, series = [], []
        for name, place in places.items():
            found = json.loads((place / "convert.json").read_text(encoding="utf-8"))
            result.details["conversions"][name] = found
            result.details[MADE].setdefault(self.label, f"{name}/original")
            result.details[MADE][f"{self.label}-{name}"] = f"{name}/at-once"
            result.details[MADE][f"{self.label}-{name}-recovered"] = f"{name}/recovered"
            table.append([name, found["verdict"], found["at_once"], found["recovered"], found["seconds"]])
            points = [{"x": s, "y": loss, "low": None, "high": None} for s, loss in found["losses"]]
            series.append({"name": name, "points": points})
            result.verdicts.append(
                f"{self.label} as {name}: {found['verdict']}; on held-out text its layers are off by "
                f"{found['at_once']:.1%} of their squared length at once, by {found['recovered']:.1%} after "
                f"{self.recover['steps']} steps of distillation."
            )
        result.tables.append(
            {
                "title": "Distance from the original, layers averaged",
                "note": "Squared distance of each layer's output over the original's squared length, on held-out text.",
                "head": ["design", "conversion", "at once", "recovered", "seconds"], "rows": table,
            }
        )  # fmt: skip
        result.charts.append(
            {
                "title": "Distillation", "note": "Training loss: the distance on the step's batch.", "x": "step",
                "y": "relative squared distance", "x_log": False, "y_log": True, "series": series, "marks": [],
            }
        )  # fmt: skip
        result.facts = {
            "recover": self.recover,
            "data": {k: c["data"] for k, c in result.details["conversions"].items()},
        }
        result.caveats.append("One seed of the distillation. An interrupted distillation begins again.")
        return result
