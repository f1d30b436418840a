"""Where the rows of a task come from, and what is known of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import FinetuneError
from .tasks import TASKS, Task, key_of_folder

Label = int | float


@dataclass(frozen=True)
class Split:
    """Labelled texts.

    Attributes:
        index: number of each row in its file, from 0, the header and blank lines not counted; or on the Hub.
        texts: of each row one text or two.
        labels: the number of each row's class; or a number, where that is what the task predicts.
    """

    index: list[int]
    texts: list[tuple[str, ...]]
    labels: list[Label]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: list[int]) -> Split:
        """Some of the rows, in the order given."""
        return Split([self.index[i] for i in chosen], [self.texts[i] for i in chosen], [self.labels[i] for i in chosen])

    def sha256(self) -> str:
        """Hash of texts and labels, the same wherever the rows were read."""
        total = hashlib.sha256()
        for texts, label in zip(self.texts, self.labels, strict=True):
            total.update(json.dumps([*texts, label]).encode() + b"\n")
        return total.hexdigest()


@dataclass(frozen=True)
class TaskData:
    """The training and dev rows of a task.

    Attributes:
        task: which.
        train: to learn from.
        dev: name of a dev set -> to be scored on.
        facts: `source`, `files` (name -> sha256), `sha256` of all of them, `rows_sha256` and number of `rows` of each
            split, `skipped`: name of a file -> how many broken rows were left out, and their first lines.
    """

    task: Task
    train: Split
    dev: dict[str, Split]
    facts: dict[str, Any]


def assemble(
    task: Task,
    source: str,
    train: Split,
    dev: dict[str, Split],
    files: Mapping[str, str],
    skipped: Mapping[str, Any],
) -> TaskData:
    """The data of a task with its facts.

    Raises:
        FinetuneError: there is nothing to learn from, or nothing to score on.
    """
    splits = {"train": train, **dev}
    for name, split in splits.items():
        if not len(split):
            raise FinetuneError(f"{task.title} of {source} has no rows in {name}: give the whole files of the task")
    if task.labels is not None and len(set(train.labels)) < 2:
        raise FinetuneError(
            f"every row that {task.title} of {source} trains on has the label {task.labels[int(train.labels[0])]!r}: "
            "give rows of at least two classes"
        )
    total = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    facts = {
        "source": source,
        "files": dict(files),
        "sha256": total,
        "rows": {name: len(split) for name, split in splits.items()},
        "rows_sha256": {name: split.sha256() for name, split in splits.items()},
        "skipped": dict(skipped),
    }
    return TaskData(task, train, dev, facts)


def read(task: Task, source: str) -> TaskData:
    """The data of a task.

    Args:
        task: which.
        source: `hub`, or a folder: the task's own, or one that holds the task's under its name, in any case.

    Raises:
        FinetuneError: a file is missing, a column or a label is not the task's; with file and line.
    """
    if source == "hub":
        from .hub import read_hub

        return read_hub(task)
    from .tsv import read_folder

    folders = tasks_in(source)
    if task.key not in folders:
        if len(folders) == 1 and next(iter(folders.values())) == Path(source):
            raise FinetuneError(f"{source} is the folder of {next(iter(folders))}, not of {task.key}; give the task's")
        known = ", ".join(folders) or "of none"
        raise FinetuneError(
            f"{source} must hold the files of {task.title}, in a folder of that name or itself; it has those of "
            f"{known}: give another folder, or --data hub"
        )
    return read_folder(task, folders[task.key])


def tasks_in(source: str) -> dict[str, Path]:
    """The tasks that a folder holds, in the order of tables: key -> folder of the task.

    A folder that is named like a task is that task's; otherwise the folders in it count that are named so. A folder of
    another name that holds a train.tsv may be of any task, and is offered for all of them.

    Raises:
        FinetuneError: it is no folder, or two folders in it are of one task.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise FinetuneError(f"{source!r} is no folder: give the folder of the task's files, or hub")
    found: dict[str, Path] = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        key = key_of_folder(inner.name)
        if key in TASKS:
            if key in found:
                raise FinetuneError(f"{folder} has two folders of {key}, {found[key].name} and {inner.name}: leave one")
            found[key] = inner
    if found:
        return {key: found[key] for key in TASKS if key in found}
    own = key_of_folder(folder.absolute().name)
    if own in TASKS:
        return {own: folder}
    named = {"train.tsv", *(task.split_by.file for task in TASKS.values() if task.split_by)}
    if any((folder / name).is_file() for name in named):
        return dict.fromkeys(TASKS, folder)
    return {}
