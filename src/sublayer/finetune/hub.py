"""The same tasks from the Hugging Face Hub: the data set `nyu-mll/glue`, which is plain tables without code."""

from __future__ import annotations

import math
from typing import Any

from .data import Label, Split, TaskData, assemble
from .errors import FinetuneError
from .tasks import HUB, Task


def read_hub(task: Task) -> TaskData:
    """The task's data, through `datasets`, which is imported only here.

    Raises:
        FinetuneError: it cannot be had, or is not what it should be.
    """
    source = f"hub:{HUB}:{task.key}"
    try:
        import datasets
    except ImportError:
        raise FinetuneError(f"{source} needs the datasets package; pip install datasets, or give a folder") from None
    try:
        found = datasets.load_dataset(HUB, task.key)
    except Exception as error:  # the library and the network raise very many kinds
        first = next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)
        raise FinetuneError(f"{source} cannot be loaded ({first}): check the network, or give a folder") from error
    names = {"train": "train", **task.hub_dev}
    absent = [name for name in names.values() if name not in found]
    if absent:
        raise FinetuneError(f"{source} must have the splits {', '.join(names.values())}; missing: {', '.join(absent)}")
    splits = {ours: _rows(task, found[theirs], f"{source}, {theirs}") for ours, theirs in names.items()}
    files = {theirs: splits[ours].sha256() for ours, theirs in names.items()}
    return assemble(task, source, splits.pop("train"), splits, files, {})


def _rows(task: Task, table: Any, where: str) -> Split:
    wanted = (*task.hub_texts, "label")
    absent = [name for name in wanted if name not in table.column_names]
    if absent:
        raise FinetuneError(
            f"{where} must have the columns {', '.join(wanted)}; it has {', '.join(table.column_names)}: give a folder"
        )
    columns = [list(table[name]) for name in task.hub_texts]
    labels = [_label(task, label, f"{where}, row {row}") for row, label in enumerate(table["label"])]
    return Split(list(range(len(labels))), list(zip(*columns, strict=True)), labels)


def _label(task: Task, value: Any, where: str) -> Label:
    if task.labels is not None:
        if not isinstance(value, int) or not 0 <= value < len(task.labels):
            raise FinetuneError(f"{where}: a label is a class from 0 to {len(task.labels) - 1}, got {value!r}")
        return value
    low, high = task.limits
    if not isinstance(value, (int, float)) or math.isnan(value) or not low <= value <= high:
        raise FinetuneError(f"{where}: a label is a number from {low:g} to {high:g}, got {value!r}")
    return float(value)
