"""Part `finetune`: checkpoints x tasks x seeds of GLUE, compared with the first checkpoint over equal seeds.

The rule of the verdict: a task tells two checkpoints apart where the 95% Student t interval of the paired difference
over seeds leaves zero out. Where `returns` names three checkpoints (whole, changed, recovered), what the change cost at
once is `whole - changed`, and the share of it that came back is `(recovered - changed) / (whole - changed)`; it is
given where the cost is at least one point. Imports no torch.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sublayer import signed
from sublayer.finetune import TASKS, FinetuneSpec, task_of
from sublayer.finetune.result import RESULTS, gather
from sublayer.study import stats
from sublayer.study.errors import StudyError
from sublayer.study.parts.checkpoints import check_sources, folder_of, gathered
from sublayer.study.parts.part import Part, Result, Setting
from sublayer.study.pool import Work, run_all
from sublayer.train import kept
from sublayer.train.frame import cores
from sublayer.whole_files import write_atomically

Json = dict[str, Any]
_OWN = ("checkpoints", "of", "tasks", "data", "seeds", "returns", "by_task")


class Finetune(Part):
    """Settings: `checkpoints` or `of`, `tasks`, `data` (a folder of GLUE's files), `seeds`, `returns`, `by_task`
    (task -> settings of its own), and any setting of a fine-tuning run."""

    def check(self) -> None:
        """Tasks, seeds and settings must fit."""
        check_sources(self)
        self.tasks: list[str] = self.take("tasks", list, need=True)
        self.seeds: list[int] = self.take("seeds", list, [0])
        self.returns: list[str] | None = self.take("returns", list)
        self.data = folder_of(self.take("data", str, need=True), self.here, self.name)
        if self.returns is not None and len(self.returns) != 3:
            raise StudyError(f"returns of part {self.name!r} names three checkpoints: whole, changed, recovered")
        for task in self.tasks:
            task_of(task)
            self.spec("none", task, 0)

    def spec(self, checkpoint: str, task: str, seed: int) -> FinetuneSpec:
        """The settings of one run."""
        own = {k: v for k, v in self.settings.items() if k not in _OWN}
        own |= (self.settings.get("by_task") or {}).get(task, {})
        return FinetuneSpec.from_dict(
            {"threads": 1, **own, "checkpoint": checkpoint, "task": task, "seed": seed, "data": self.data}
        )

    def run(self, at: Setting) -> Result:
        """Run every run that is not finished, and compare."""
        sources = gathered(self, at)
        for label in self.returns or ():
            if label not in sources:
                raise StudyError(f"returns names {label!r}; part {self.name!r} starts from {', '.join(sources)}")
        work = []
        places: dict[tuple[str, str, int], Path] = {}
        for seed in self.seeds:
            for task in self.tasks:
                for label, checkpoint in sources.items():
                    place = at.folder / label / "runs" / f"{task}-s{seed}"
                    places[label, task, seed] = place
                    if _row(place).get("status") in ("ok", "diverged"):
                        continue
                    place.parent.mkdir(parents=True, exist_ok=True)
                    settings = at.folder / label / "specs" / f"{task}-s{seed}.json"
                    settings.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(settings, self.spec(checkpoint, task, seed).to_json())
                    arguments = (str(settings), str(place), "--resume", "--quiet")
                    log = at.folder / label / "logs" / f"{task}-s{seed}.txt"
                    work.append(Work(f"{label} {task} s{seed}", "sublayer.finetune.__main__", arguments, log))
        run_all(work, at.jobs or cores(), at.say)
        rows = [
            {**_row(place), "checkpoint_label": label, "task": task, "seed": seed}
            for (label, task, seed), place in places.items()
        ]
        return self._gather(at.folder, list(sources), rows)

    def _gather(self, folder: Path, labels: Sequence[str], rows: Sequence[Json]) -> Result:
        result = Result(details={"runs": [_short(row) for row in rows]})
        line = ["sublayer", "finetune"]
        for label in labels:
            mine = [r for r in rows if r["checkpoint_label"] == label]
            if any(r["status"] != "missing" for r in mine):
                found = gather([{**r, "folder": f"runs/{r['task']}-s{r['seed']}"} for r in mine], line)
                signed.write(folder / label / RESULTS, found, indent=1)
        score = {(r["checkpoint_label"], r["task"], r["seed"]): r.get("score") for r in rows}
        majority = {r["task"]: (r.get("majority") or {}).get("score") for r in rows if r["status"] == "ok"}
        result.tables.append(self._table(labels, score, majority))
        for label in labels[1:]:
            for task in self.tasks:
                one, other = ({s: score[k, task, s] for s in self.seeds} for k in (labels[0], label))
                result.verdicts.append(_told(task, labels[0], label, one, other))
        if self.returns is not None:
            result.verdicts += self._returned(score)
        lost = [f"{r['checkpoint_label']} {r['task']} s{r['seed']}: {r['status']}" for r in rows if r["status"] != "ok"]
        result.caveats.append("Scores are of the dev sets: the labels of the test sets are not public.")
        result.caveats += [f"Without a score, and not in the means: {'; '.join(lost)}."] if lost else []
        known = [r for r in rows if r["status"] == "ok"]
        result.facts = {
            "data": {t: next((r["data"] for r in known if r["task"] == t), None) for t in self.tasks},
            "seeds": self.seeds, "runs": len(rows),
            "seconds_of_runs": round(sum(r.get("seconds") or 0 for r in rows), 1),
        }  # fmt: skip
        return result

    def _table(self, labels: Sequence[str], score: Mapping[Any, float | None], majority: Mapping[str, Any]) -> Json:
        table: list[list[Any]] = []
        for label in labels:
            line: list[Any] = [label]
            for task in self.tasks:
                values = [v for s in self.seeds if (v := score[label, task, s]) is not None]
                line.append(_percent(values, len(self.seeds)))
            table.append(line)
        table.append(
            ["majority", *(None if majority.get(t) is None else f"{100 * majority[t]:.1f}" for t in self.tasks)]
        )
        return {
            "title": "Scores on the dev sets, times 100",
            "note": f"Mean over seeds {', '.join(map(str, self.seeds))}, with half the width of its 95% t interval. "
            + "; ".join(f"{TASKS[t].title}: {', '.join(TASKS[t].score_names)}" for t in self.tasks)
            + ". Several metrics of a task are averaged.",
            "head": ["checkpoint", *(TASKS[t].title for t in self.tasks)],
            "rows": table,
        }

    def _returned(self, score: Mapping[Any, float | None]) -> list[str]:
        assert self.returns is not None
        whole, changed, recovered = self.returns
        told = []
        for task in self.tasks:
            means = []
            for label in self.returns:
                values = [v for s in self.seeds if (v := score[label, task, s]) is not None]
                means.append(statistics.fmean(values) if values else math.nan)
            cost = means[0] - means[1]
            if math.isnan(sum(means)):
                text = "cannot be said: a run has no score"
            elif cost < 0.01:
                text = f"{changed} costs {100 * cost:+.1f} points, less than one, so there is nothing to return"
            else:
                text = (
                    f"{changed} costs {100 * cost:.1f} points against {whole}, and {recovered} returns "
                    f"{(means[2] - means[1]) / cost:.0%} of them"
                )
            told.append(f"{TASKS[task].title}: {text}.")
        return told


def _told(task: str, first: str, second: str, one: Any, other: Any) -> str:
    found = stats.paired(one, other)
    title = TASKS[task].title
    if found.difference is None:
        return f"{title}: {second} and {first} cannot be compared, a run has no score."
    text = f"{title}: {second} is {100 * found.difference:+.1f} points against {first}"
    if found.low is None or found.high is None:
        return f"{text}, from one seed."
    apart = "told apart" if found.clear else "not told apart"
    return f"{text} (95% {100 * found.low:+.1f} .. {100 * found.high:+.1f} over {len(found.seeds)} seeds: {apart})."


def _percent(values: Sequence[float], runs: int) -> str | None:
    if not values:
        return None
    found = stats.summary(values)
    text = f"{100 * statistics.fmean(values):.1f}"
    if found.low is not None and found.high is not None:
        text += f" ± {50 * (found.high - found.low):.1f}"
    return text + (f" ({len(values)} of {runs})" if len(values) < runs else "")


def _row(place: Path) -> Json:
    row, problem = kept.read_row(place)
    if row is None or problem is not None:
        return {"status": "missing", "score": None, "reason": problem or "it did not begin"}
    return row


def _short(row: Json) -> Json:
    keys = (
        "checkpoint_label",
        "task",
        "seed",
        "status",
        "reason",
        "score",
        "metrics",
        "steps_done",
        "seconds",
        "threads",
        "device",
    )
    return {k: row.get(k) for k in keys}
