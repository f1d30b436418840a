"""The results of fine-tuning: `finetune.json`, and the table in which they are shown. Imports no torch."""

from __future__ import annotations

import datetime
import html
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublayer import signed
from sublayer.train.frame import cores

from .errors import FinetuneError
from .tasks import TASKS

if TYPE_CHECKING:
    import pandas

SCHEMA = "sublayer.finetune/1"
RESULTS = "finetune.json"
CONFIDENCE = 0.95
_ALWAYS = [key for key in TASKS if key != "wnli"]  # the columns of a table of GLUE; WNLI is shown if it was run


class Finetuning:
    """What came out, and where it is.

    Attributes:
        folder: has ``finetune.json`` and one folder a run under ``runs``.
        results: what is in ``finetune.json``.
    """

    def __init__(self, folder: Path, results: dict[str, Any]) -> None:
        self.folder, self.results = folder, results

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Finetuning:
        """Read results that were written before.

        Raises:
            FinetuneError: there are none.
        """
        path = Path(folder) / RESULTS
        try:
            results = signed.read(path)
        except signed.Damaged as error:
            raise FinetuneError(f"{error}; --resume writes it again from the runs") from None
        except OSError as error:
            raise FinetuneError(f"{path} holds no results of fine-tuning: {error}") from None
        if results.get("schema") != SCHEMA:
            raise FinetuneError(f"{path} must have schema {SCHEMA!r}, got {results.get('schema')!r}")
        return cls(Path(folder), results)

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON values."""
        return self.results

    def to_frame(self) -> pandas.DataFrame:
        """One row a run: task, seed, status, score, each metric, the majority's score, steps and time. Needs pandas."""
        try:
            import pandas
        except ModuleNotFoundError:
            raise FinetuneError(
                "to_frame needs pandas, which is not installed; pip install 'sublayer[frames]'"
            ) from None
        columns = "id task seed status reason score best_step steps_done seconds seconds_per_step train_loss".split()
        rows = []
        for row in self.results["runs"]:
            shown = {column: row.get(column) for column in columns}
            shown["majority"] = (row.get("majority") or {}).get("score")
            rows.append({**shown, **(row.get("metrics") or {})})
        return pandas.DataFrame(rows)

    def model(self, task: str, seed: int | None = None) -> Path:
        """Folder of the fine-tuned model of a task: a Hugging Face checkpoint.

        Raises:
            FinetuneError: no such run is there, or its weights were not kept.
        """
        for row in self.results["runs"]:
            if row["task"] == task and row.get("model") and seed in (None, row["seed"]):
                return self.folder / str(row["folder"]) / str(row["model"])
        raise FinetuneError(f"no finished run of {task!r} with kept weights in {self.folder}: run it, with save_model")

    def table(self) -> str:
        """Scores of all tasks in the order of GLUE's tables, times 100, with the majority baseline below."""
        return table(self.results)

    def __str__(self) -> str:
        tasks = self.results["tasks"]
        parts = [details(self.results)]
        if len(tasks) > 1:
            parts.insert(0, self.table())
        return "\n\n".join([*parts, *self.results["caveats"]])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def gather(rows: Sequence[Mapping[str, Any]], command: Sequence[str]) -> dict[str, Any]:
    """The results of some runs as the schema `results.schema.json` describes them.

    Args:
        rows: of all runs that were asked for; those that are not there yet are "missing".
        command: the command line.
    """
    known = next(row for row in rows if row["status"] != "missing")
    settings = {k: v for k, v in known["settings"].items() if k not in ("task", "seed", "data")}
    for name in ("steps", "eval_every", "save_steps"):
        settings.pop(name)  # they follow from each task's rows: see the runs
    tasks = [_task(key, [row for row in rows if row["task"] == key]) for key in dict.fromkeys(r["task"] for r in rows)]
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": known["versions"],
        "machine": {
            "platform": platform.platform(),
            "cores": cores(),
            "threads": known["threads"],
            "device": known["device"] or "none",
        },
        "checkpoint": known["checkpoint"],
        "settings": settings,
        "tasks": tasks,
        "runs": [dict(row) for row in rows],
        "caveats": _caveats(rows, tasks),
    }


def _task(key: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One task over its seeds."""
    known = next((row for row in rows if row["status"] != "missing"), None)
    task = TASKS[key]
    good = [row for row in rows if row["status"] == "ok"]
    return {
        "task": key,
        "title": task.title,
        "metrics": list(task.score_names),
        "seeds": [row["seed"] for row in rows],
        "statuses": [row["status"] for row in rows],
        "score": _summary([row["score"] for row in good], len(rows)),
        "by_metric": {name: _summary([row["metrics"][name] for row in good], len(rows)) for name in task.score_names},
        "majority": known["majority"] if known else None,
        "data": known["data"] if known else None,
    }


def _summary(values: Iterable[float | None], runs: int) -> dict[str, Any]:
    """Mean over the runs that have a value, and the half-width of Student's t interval of that mean."""
    numbers = [value for value in values if value is not None]
    n = len(numbers)
    mean = math.fsum(numbers) / n if n else None
    sd = half = None
    if mean is not None and n > 1:
        from scipy.stats import t

        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in numbers) / (n - 1))
        half = float(t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * sd / math.sqrt(n)
    return {"mean": mean, "sd": sd, "half": half, "n": n, "lost": runs - n}


def _caveats(rows: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    found = ["Scores are of the dev sets: the labels of the test sets are not public."]
    if any(row.get("weights") == "best" for row in rows):
        found.append(
            "The weights are those of the best evaluation on the dev set that is scored, which flatters the scores."
        )
    if len(rows) == len(tasks):
        found.append("One seed: scores have no interval. Give --seeds 0,1,2.")
    else:
        found.append(f"± is half the width of the {CONFIDENCE:.0%} Student t interval of the mean over the seeds.")
    lost = [f"{row['id']} ({row['status']})" for row in rows if row["score"] is None]
    if lost:
        found.append(f"Without a score, and not in the means: {', '.join(lost)}.")
    return found


# -- text -----------------------------------------------------------------------------------------------------------


def table(results: Mapping[str, Any]) -> str:
    """The scores in the layout of GLUE's tables (Markdown)."""
    by_key = {task["task"]: task for task in results["tasks"]}
    keys = [*_ALWAYS, *(["wnli"] if "wnli" in by_key else [])]
    name = _name(results)
    rows = [
        ["", *(TASKS[key].title for key in keys)],
        [name, *(_cell(by_key[key]) if key in by_key else "-" for key in keys)],
        ["majority", *(_percent(((by_key.get(key) or {}).get("majority") or {}).get("score")) for key in keys)],
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def details(results: Mapping[str, Any]) -> str:
    """Each task's metrics, seeds and majority baseline; nothing is left out that was run."""
    lines = [f"{_name(results)}: {results['checkpoint']['design_trained']}".replace("\n", "; ")]
    for task in results["tasks"]:
        rows = [row for row in results["runs"] if row["task"] == task["task"]]
        lines.append("")
        lines.append(f"{task['title']}  {_cell(task)}")
        for metric in task["metrics"]:
            values = ", ".join(_seed(row, metric) for row in rows)
            base = _percent(((task["majority"] or {}).get("metrics") or {}).get(metric))
            one = task["by_metric"][metric]
            lines.append(f"  {metric:<20} {_number(one):<14} majority {base:<6} {values}")
        for row in rows:
            lines += [f"  seed {row['seed']}: {name}: {note}" for name, note in (row.get("notes") or {}).items()]
            if row["status"] != "ok":
                lines.append(f"  seed {row['seed']}: {row['status']}: {row['reason']}")
        majority_notes = ((task["majority"] or {}).get("notes") or {}).items()
        lines += [f"  majority: {name}: {note}" for name, note in majority_notes]
        skipped = ((task["data"] or {}).get("skipped") or {}).items()
        lines += [f"  {file}: {one['count']} broken rows left out" for file, one in skipped]
    return "\n".join(lines)


def _name(results: Mapping[str, Any]) -> str:
    source, to = str(results["checkpoint"]["source"]), results["settings"]["to"]
    name = Path(source).name if Path(source).exists() else source
    return f"{name} -> {to}" if to else name


def _seed(row: Mapping[str, Any], metric: str) -> str:
    value = (row.get("metrics") or {}).get(metric) if row["status"] == "ok" else None
    shown = _percent(value) if value is not None else "undefined" if row["status"] == "ok" else row["status"]
    return f"seed {row['seed']}: {shown}"


def _cell(task: Mapping[str, Any]) -> str:
    """A task's score; a word where no run has one."""
    if task["score"]["mean"] is not None:
        return _number(task["score"])
    states = ["undefined" if status == "ok" else status for status in task["statuses"]]
    return max(states, key=states.count)


def _number(summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return "-"
    text = _percent(summary["mean"])
    if summary["half"] is not None:
        text += f" ±{_percent(summary['half'])}"
    if summary["lost"]:
        text += f" ({summary['n']} of {summary['n'] + summary['lost']})"
    return text


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
