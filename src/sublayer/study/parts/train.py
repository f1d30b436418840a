"""Part `train`: designs x learning rates x seeds, at every combination of a grid of settings.

Each combination (a cell) is a study of its own, in a folder of its own with a page. What is compared across cells:

A run **learned** where its held-out loss is at least `LEARNED` nats below that of knowing only how frequent each token
is (the unigram loss: the plateau on which a language model starts); it is **stuck** where it is finite and not below,
**lost** where the loss or a gradient was not a finite number. A design trains in a cell where every seed learned.

Where the grid has `layers`, the depth forecast (`sublayer.audit.forecast`) is written before the first run starts, and
is held against what the first step of each run then showed: how the stream grows, and the gradient of the first layer's
weights over that of the last layer's.
"""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sublayer.study.errors import StudyError
from sublayer.study.files import PLAN
from sublayer.study.parts import claim_charts, depth
from sublayer.study.parts.checkpoints import MADE
from sublayer.study.parts.part import Part, Result, Setting
from sublayer.study.plan import Plan
from sublayer.study.study import Study, run_study

LEARNED = 0.1  # nats below the unigram loss
Json = dict[str, Any]


class Train(Part):
    """Settings: `designs`, `seeds`, `lrs`, `size`, `grid` (setting -> list of values), and any setting of a run."""

    def check(self) -> None:
        """Every cell's plan must be possible."""
        settings = dict(self.settings)
        grid = settings.pop("grid", {})
        if not isinstance(grid, Mapping) or not all(isinstance(v, list) and v for v in grid.values()):
            raise StudyError(f"grid of part {self.name!r} must give lists, such as `layers: [6, 12]`, got {grid!r}")
        self.grid: dict[str, list[Any]] = dict(grid)
        for key in ("data", "tokenizer"):
            value = settings.get(key)
            if isinstance(value, str) and (self.here / value).exists():
                settings[key] = str((self.here / value).resolve())
        self.plans = {label: Plan.make(**_plan(settings, cell)) for label, cell in self.cells()}
        first = next(iter(self.plans.values()))
        self.seeds, self.designs = first.seeds, first.designs

    def cells(self) -> Iterator[tuple[str, Json]]:
        """Every combination of the grid, with the name of its folder."""
        for values in itertools.product(*self.grid.values()):
            cell = dict(zip(self.grid, values, strict=True))
            yield "-".join(f"{k}-{v:g}" if isinstance(v, float) else f"{k}-{v}" for k, v in cell.items()) or "all", cell

    def run(self, at: Setting) -> Result:
        """Run every cell, then gather."""
        found: dict[str, Study] = {}
        base = next(iter(self.plans.values())).base
        forecasts = (
            depth.forecasts(self.designs, base, self.grid["layers"], at.folder) if "layers" in self.grid else None
        )
        for number, (label, plan) in enumerate(self.plans.items(), 1):
            at.say(f"{self.name}: {label} ({number} of {len(self.plans)})")
            folder = at.folder / label
            found[label] = _cell(plan, folder, at)
        return self._gather(found, forecasts)

    # -- gathering --------------------------------------------------------------------------------------------------

    def _gather(self, found: Mapping[str, Study], forecasts: Json | None) -> Result:
        cells = dict(self.cells())
        rows = [
            _row(label, cells[label], study, run) for label, study in found.items() for run in study.results["runs"]
        ]
        plateau = {label: unigram_loss(self.plans[label]) for label in found}
        for row in rows:
            row["state"] = state(row, plateau[row["cell"]])
        result = Result(details={"runs": rows, "unigram_loss": plateau, "forecast": forecasts})
        result.facts = self._facts(found)
        for row in rows:
            if row["status"] == "ok" and row["best_lr"]:
                parts = [
                    row["cell"] if self.grid else "",
                    row["design"],
                    f"s{row['seed']}" if len(self.seeds) > 1 else "",
                ]
                made = result.details.setdefault(MADE, {})
                made["-".join(p for p in parts if p)] = f"{row['cell']}/runs/{row['id']}/model"
        result.tables.append(self._losses(found, rows, plateau))
        if self.grid:
            result.tables.append(self._states(rows))
        for key, values in self.grid.items():
            if len(values) > 1 and all(isinstance(v, int | float) for v in values) and key != "warmup":
                result.charts += self._charts(key, rows, plateau)
        if forecasts is not None:
            table, verdicts = depth.against(forecasts, self.designs, self.grid["layers"], rows)
            result.tables.append(table)
            result.verdicts += verdicts
        for label, study in found.items():
            told = f"{label}: " if self.grid else ""
            if not self.grid:
                result.verdicts.append(study.verdict)
                result.verdicts += claim_charts.verdicts(study)
                tables, charts = claim_charts.isotropy(study)
                result.tables += tables
                result.charts += [*claim_charts.by_layer(study), *claim_charts.over_training(study), *charts]
            result.caveats += [f"{told}{c}" for c in study.results["caveats"] if c not in result.caveats]
        if self.grid:
            result.verdicts += self._trained(rows)
            result.caveats = list(dict.fromkeys(c.partition(": ")[2] for c in result.caveats))
        self._claims(found, result)
        return result

    def _facts(self, found: Mapping[str, Study]) -> Json:
        first = next(iter(found.values())).results
        runs = [r for s in found.values() for r in s.results["runs"]]
        return {
            "data": first["data"], "seeds": list(self.seeds), "runs": len(runs),
            "seconds_of_runs": round(sum(r["seconds"] or 0 for r in runs), 1),
            "fairness": {label: study.results["fairness"] for label, study in found.items()},
            "pages": {label: f"{label}/report.html" for label in found},
        }  # fmt: skip

    def _of(self, rows: Sequence[Json], label: str, design: str) -> list[Json]:
        return [r for r in rows if r["cell"] == label and r["design"] == design and r["best_lr"]]

    def _losses(self, found: Mapping[str, Study], rows: Sequence[Json], plateau: Mapping[str, float]) -> Json:
        speeds = {p.id: [r["tokens_per_second"] for r in rows if r["design"] == p.id] for p in self.designs}
        table: list[list[Any]] = []
        for label in found:
            comparison = {r["design"]: r for r in found[label].results["comparison"]["rows"]}
            priced = {d["id"]: d for d in found[label].results["designs"]}
            for planned in self.designs:
                row = comparison[planned.id]
                interval = None if row["low"] is None else f"{row['low']:+.4f} .. {row['high']:+.4f}"
                speed = [s for s in (speeds[planned.id] if not self.grid else []) if s]
                table.append(
                    [label, planned.id, row["mean"], row["difference"], interval, row["lost"]]
                    + [priced[planned.id]["parameters"], f"{priced[planned.id]['flops_per_token']:.4g}"]
                    + ([round(statistics.median(speed), 1) if speed else None] if not self.grid else [])
                )
        head = ["cell", "design", "held-out loss", "difference", "95% interval", "runs lost", "parameters"]
        head += ["FLOPs a token"] + ([] if self.grid else ["tokens/s, median run"])
        if not self.grid:
            head, table = head[1:], [r[1:] for r in table]
        told = ", ".join(f"{label} {loss:.3f}" for label, loss in plateau.items())
        told = told if len({round(v, 3) for v in plateau.values()}) > 1 else f"{next(iter(plateau.values())):.3f}"
        note = f"Differences and intervals are against the first design over equal seeds. Unigram loss: {told}."
        return {"title": "Held-out loss", "note": note, "head": head, "rows": table}

    def _states(self, rows: Sequence[Json]) -> Json:
        """Cells by designs: how many seeds learned, were stuck, were lost."""
        table: list[list[Any]] = []
        for label, _ in self.cells():
            line: list[Any] = [label]
            for planned in self.designs:
                states = [r["state"] for r in self._of(rows, label, planned.id)]
                line.append(", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) or None)
            table.append(line)
        rule = f"Learned: held-out loss {LEARNED} nats or more below the unigram loss. Stuck: finite, but not below."
        return {
            "title": "Which runs learned", "note": f"{rule} Lost: not a number.",
            "head": ["cell", *(p.id for p in self.designs)], "rows": table,
        }  # fmt: skip

    def _charts(self, key: str, rows: Sequence[Json], plateau: Mapping[str, float]) -> list[Json]:
        """The loss along one axis of the grid, one chart for each combination of the others."""
        charts = []
        others = [k for k in self.grid if k != key]
        for values in itertools.product(*(self.grid[k] for k in others)):
            fixed = dict(zip(others, values, strict=True))
            chosen = [r for r in rows if all(r["settings"][k] == v for k, v in fixed.items())]
            told = ", ".join(f"{k} {v}" for k, v in fixed.items())
            series = [
                {"name": p.id, "points": [self._point(chosen, key, x, p.id) for x in self.grid[key]]}
                for p in self.designs
            ]
            level = statistics.median(plateau.values())
            charts.append(
                {
                    "title": f"Held-out loss against {key}" + (f", {told}" if told else ""),
                    "note": "Mean over seeds, with the lowest and highest seed; lost runs are left out of the mean.",
                    "x": key, "y": "held-out loss (nats)", "x_log": key == "layers", "y_log": False, "series": series,
                    "marks": [{"y": round(level, 4), "name": "unigram loss"}],
                }
            )  # fmt: skip
        return charts

    def _point(self, rows: Sequence[Json], key: str, x: Any, design: str) -> Json:
        mine = [r for r in rows if r["design"] == design and r["settings"][key] == x and r["best_lr"]]
        losses = [r["eval_loss"] for r in mine if r["eval_loss"] is not None]
        if not losses:
            return {"x": x, "y": None, "low": None, "high": None}
        return {"x": x, "y": statistics.fmean(losses), "low": min(losses), "high": max(losses)}

    def _trained(self, rows: Sequence[Json]) -> list[str]:
        """For each setting of the rest of the grid, where along the first axis not every seed of a design learned."""
        axis, others = next(iter(self.grid)), [k for k in self.grid if k != next(iter(self.grid))]
        told = []
        for values in itertools.product(*(self.grid[k] for k in others)):
            fixed = dict(zip(others, values, strict=True))
            parts = []
            for planned in self.designs:
                fine = [
                    x for x in self.grid[axis]
                    if (mine := [r for r in rows if r["design"] == planned.id and r["best_lr"]
                                 and r["settings"] == {axis: x, **fixed}])
                    and all(r["state"] == "learned" for r in mine)
                ]  # fmt: skip
                failed = [x for x in self.grid[axis] if x not in fine]
                all_fine = f"{planned.id} learned at all"
                parts.append(all_fine if not failed else f"{planned.id} failed at {axis} {', '.join(map(str, failed))}")
            where = ", ".join(f"{k} {v}" for k, v in fixed.items())
            told.append((f"With {where}: " if where else "") + "; ".join(parts) + ".")
        return told

    def _claims(self, found: Mapping[str, Study], result: Result) -> None:
        """The two claims, cell by cell, with the value of the median layer."""
        table = []
        for label, study in found.items():
            for claim in study.results["claims"]:
                for answer in claim["answers"]:
                    if answer["value"] is not None:
                        interval = None
                        if answer["low"] is not None:
                            interval = f"{answer['low']:.3f} .. {answer['high']:.3f}"
                        table.append(
                            [label, claim["claim"], answer["design"], answer["answer"], answer["value"], interval]
                        )
        if table:
            head = ["cell", "claim", "design", "answer", "median layer", "95% interval over seeds"]
            rules = " ".join(f"{c['claim']}: {c['rule']}" for c in next(iter(found.values())).results["claims"])
            result.tables.append({"title": "The two claims", "note": rules, "head": head, "rows": table})


def _plan(settings: Mapping[str, Any], cell: Mapping[str, Any]) -> Json:
    values = {**settings, **cell}
    for key in ("seeds", "lrs"):
        if key in values:
            values[key] = tuple(values[key])
    return values


def _cell(plan: Plan, folder: Path, at: Setting) -> Study:
    """The study of one cell: read if it is whole, else run."""
    if (
        (folder / PLAN).exists()
        and (folder / "results.json").exists()
        and not Plan.load(folder / PLAN).differences(plan)
    ):
        study = Study.load(folder)
        if all(r["status"] in ("ok", "diverged") for r in study.results["runs"]):
            return study
    return run_study(plan, folder, jobs=at.jobs, resume=True, output=at.output, report=at.page)


def _row(label: str, cell: Json, study: Study, run: Json) -> Json:
    """What the comparison across cells needs of one run."""
    lrs = {r["design"]: r["lr"] for r in study.results["comparison"]["rows"]}
    first = depth.first_step(study.folder / run["metrics"])
    keys = "id design seed lr status reason eval_loss steps_done seconds tokens_per_second threads device".split()
    row = {k: run.get(k) for k in keys}
    return {**row, "cell": label, "settings": cell, "best_lr": lrs[run["design"]] == run["lr"], **first}


def state(row: Mapping[str, Any], plateau: float) -> str:
    """learned, stuck, lost, or missing."""
    if row["status"] == "ok":
        return "learned" if row["eval_loss"] <= plateau - LEARNED else "stuck"
    return "lost" if row["status"] == "diverged" else "missing"


def unigram_loss(plan: Plan) -> float:
    """Loss in nats of held-out tokens under the frequencies of the training text (one added to each count)."""
    import numpy as np

    from sublayer.train import prepare

    corpus = prepare(plan.base)
    size = corpus.vocabulary.size
    counts = np.bincount(np.asarray(corpus.train.ids), minlength=size) + 1.0
    seen = np.bincount(np.asarray(corpus.eval.ids), minlength=size)
    return float(-(seen * np.log(counts / counts.sum())).sum() / seen.sum())


__all__ = ["LEARNED", "Train", "state", "unigram_loss"]
