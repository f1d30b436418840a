"""The official metrics of GLUE, the majority baseline, and scoring again from a file of predictions.

Sources: Wang et al. 2018 (1804.07461), section 2.1; Matthews' correlation: Matthews 1975. Computed by scikit-learn and
scipy, which are imported only here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import Split
from .errors import FinetuneError
from .tasks import Task

Values = NDArray[Any]


@dataclass(frozen=True)
class Scores:
    """What predictions are worth.

    Attributes:
        values: each metric, as a fraction; None where it is not defined.
        notes: metric -> why it is 0 or undefined whatever the model knows.
    """

    values: dict[str, float | None]
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The mean of all metrics, None if one is not defined."""
        known = [value for value in self.values.values() if value is not None]
        return sum(known) / len(known) if known and len(known) == len(self.values) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"score": self.score, "metrics": dict(self.values), "notes": dict(self.notes)}


def require() -> None:
    """Check that the metrics can be computed, before anything is trained.

    Raises:
        FinetuneError: scikit-learn or scipy is missing.
    """
    try:
        for name in ("scipy.stats", "sklearn.metrics"):
            import_module(name)
    except ImportError as error:
        raise FinetuneError(
            f"the metrics of GLUE need scikit-learn and scipy, and {error.name or 'one of them'} is not installed; pip "
            "install 'sublayer[glue]'"
        ) from None


def score(task: Task, predictions: Mapping[str, Values], labels: Mapping[str, Values]) -> Scores:
    """The task's metrics.

    Args:
        task: which.
        predictions: name of a dev set -> classes, or numbers where the task's label is one; shape [rows].
        labels: the truth, alike.
    """
    require()
    values: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    for metric in task.metrics:
        for split in task.dev:
            name = metric if len(task.dev) == 1 else f"{metric}_{split}"
            values[name], note = _METRICS[metric](np.asarray(predictions[split]), np.asarray(labels[split]))
            if note:
                notes[name] = note
    return Scores(values, notes)


def majority(task: Task, train: Split, dev: Mapping[str, Split]) -> dict[str, Any]:
    """What a model gets that gives every row the same answer: the class that is most frequent in `train` (the first of
    equals), or the mean where the label is a number. `label`, and the entries of `Scores.to_dict`."""
    labels = np.asarray(train.labels)
    answer = float(labels.mean()) if task.labels is None else int(np.bincount(labels).argmax())
    same = {name: np.full(len(split), answer) for name, split in dev.items()}
    scores = score(task, same, {name: np.asarray(split.labels) for name, split in dev.items()})
    shown = answer if task.labels is None else task.labels[int(answer)]
    return {"label": shown, **scores.to_dict()}


def rescore(task: Task, files: Mapping[str, Path] | Path) -> Scores:
    """The metrics from files of predictions: tab-separated with the columns index, prediction and label.

    Args:
        task: which.
        files: name of a dev set -> its file; or the file, where there is one dev set.

    Raises:
        FinetuneError: a file is not such a file.
    """
    if isinstance(files, Path):
        (split,) = task.dev if len(task.dev) == 1 else (None,)
        if split is None:
            raise FinetuneError(
                f"{task.title} has {len(task.dev)} dev sets: give a file for each, {', '.join(task.dev)}"
            )
        files = {split: files}
    read = {split: _predictions(task, path) for split, path in files.items()}
    return score(task, {k: v[0] for k, v in read.items()}, {k: v[1] for k, v in read.items()})


def _predictions(task: Task, path: Path) -> tuple[Values, Values]:
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
    if not lines or lines[0] != ["index", "prediction", "label"]:
        raise FinetuneError(f"{path} must begin with the columns index, prediction and label; got {lines[:1]}")
    rows = lines[1:]
    try:
        if task.labels is None:
            return np.array([float(r[1]) for r in rows]), np.array([float(r[2]) for r in rows])
        return tuple(np.array([task.labels.index(r[i]) for r in rows]) for i in (1, 2))  # type: ignore[return-value]
    except (ValueError, IndexError) as error:
        raise FinetuneError(
            f"{path} has a row that is not of {task.title} ({error}): give the file as written"
        ) from None


_Value = tuple[float | None, str]


def _constant(predictions: Values) -> str:
    """A remark where every prediction is the same, else nothing."""
    if len(predictions) and bool((predictions == predictions[0]).all()):
        return f"every prediction is {predictions[0]:g}"
    return ""


def _accuracy(predictions: Values, labels: Values) -> _Value:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions)), ""


def _f1(predictions: Values, labels: Values) -> _Value:
    """Of class 1; 0 where nothing is predicted to be of it."""
    from sklearn.metrics import f1_score

    note = "" if bool((predictions == 1).any()) else "no row is predicted to be of class 1"
    return float(f1_score(labels, predictions, zero_division=0)), note


def _matthews(predictions: Values, labels: Values) -> _Value:
    """0 by definition where the predictions, or the labels, are all the same."""
    from sklearn.metrics import matthews_corrcoef

    same = _constant(predictions)
    return float(matthews_corrcoef(labels, predictions)), f"{same}: no correlation, 0 by definition" if same else ""


def _pearson(predictions: Values, labels: Values) -> _Value:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def _spearman(predictions: Values, labels: Values) -> _Value:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(compute: Any, predictions: Values, labels: Values) -> _Value:
    why = _constant(predictions) or ("every label is the same" if _constant(labels) else "")
    if len(labels) < 2:
        why = "there is one row"
    if why:
        return None, f"{why}: a correlation is not defined"
    return float(compute(predictions.astype(np.float64), labels.astype(np.float64)).statistic), ""


_METRICS = {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews, "pearson": _pearson, "spearman": _spearman}
