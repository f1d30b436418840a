"""The tasks of GLUE as data: columns, labels, files and metrics of each.

Sources: Wang et al. 2018 (GLUE, 1804.07461), table 1, for tasks and metrics; the files as gluebenchmark.com distributes
them; the data set `nyu-mll/glue` of the Hugging Face Hub, whose order of the labels is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .errors import FinetuneError

HUB = "nyu-mll/glue"
_DEV, _HUB_DEV = MappingProxyType({"dev": "dev.tsv"}), MappingProxyType({"dev": "validation"})
_ENTAILS = ("entailment", "not_entailment")


@dataclass(frozen=True)
class DevIds:
    """A training file from which the dev set is still to be taken out.

    Attributes:
        file: the rows of both, with a header.
        ids: the pairs of ids that are the dev set, two columns.
        columns: of `file`, that hold such a pair.
    """

    file: str
    ids: str
    columns: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        key: its name on the command line, and on the Hub.
        title: its name in tables.
        texts: the columns of the text or of the two texts.
        hub_texts: the same on the Hub.
        label: the column of the label.
        labels: the labels as the files write them, in the order of the classes; None: a number within `limits`.
        limits: of a task whose label is a number.
        metrics: computed on each dev set; the score is the mean of all of them.
        dev: name of a dev set -> its file.
        hub_dev: name of a dev set -> its split on the Hub.
        columns: of a file without a header; None where the first line names them.
        skips_broken: whether rows with a wrong number of cells or an unknown label are left out and counted, because
            the distributed file has some.
        split_by: where the distributed folder has a training file from which the dev set is to be taken.
    """

    key: str
    title: str
    texts: tuple[str, ...]
    hub_texts: tuple[str, ...]
    label: str = "label"
    labels: tuple[str, ...] | None = ("0", "1")
    limits: tuple[float, float] = (0.0, 0.0)
    metrics: tuple[str, ...] = ("accuracy",)
    dev: Mapping[str, str] = field(default_factory=lambda: _DEV)
    hub_dev: Mapping[str, str] = field(default_factory=lambda: _HUB_DEV)
    columns: tuple[str, ...] | None = None
    skips_broken: bool = False
    split_by: DevIds | None = None

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of all its scores: the metrics, of each dev set where there are several."""
        if len(self.dev) == 1:
            return self.metrics
        return tuple(f"{metric}_{split}" for metric in self.metrics for split in self.dev)


#: In the order in which tables show them.
TASKS: dict[str, Task] = {
    task.key: task
    for task in (
        Task(
            key="mnli",
            title="MNLI",
            texts=("sentence1", "sentence2"),
            hub_texts=("premise", "hypothesis"),
            label="gold_label",
            labels=("entailment", "neutral", "contradiction"),
            dev={"matched": "dev_matched.tsv", "mismatched": "dev_mismatched.tsv"},
            hub_dev={"matched": "validation_matched", "mismatched": "validation_mismatched"},
        ),
        Task(
            key="qqp",
            title="QQP",
            texts=("question1", "question2"),
            hub_texts=("question1", "question2"),
            label="is_duplicate",
            metrics=("f1", "accuracy"),
            skips_broken=True,
        ),
        Task(
            key="qnli",
            title="QNLI",
            texts=("question", "sentence"),
            hub_texts=("question", "sentence"),
            labels=_ENTAILS,
        ),
        Task(key="sst2", title="SST-2", texts=("sentence",), hub_texts=("sentence",)),
        Task(
            key="cola",
            title="CoLA",
            texts=("sentence",),
            hub_texts=("sentence",),
            metrics=("matthews",),
            columns=("source", "label", "mark", "sentence"),
        ),
        Task(
            key="stsb",
            title="STS-B",
            texts=("sentence1", "sentence2"),
            hub_texts=("sentence1", "sentence2"),
            label="score",
            labels=None,
            limits=(0.0, 5.0),
            metrics=("pearson", "spearman"),
        ),
        Task(
            key="mrpc",
            title="MRPC",
            texts=("#1 String", "#2 String"),
            hub_texts=("sentence1", "sentence2"),
            label="Quality",
            metrics=("f1", "accuracy"),
            split_by=DevIds("msr_paraphrase_train.txt", "dev_ids.tsv", ("#1 ID", "#2 ID")),
        ),
        Task(
            key="rte",
            title="RTE",
            texts=("sentence1", "sentence2"),
            hub_texts=("sentence1", "sentence2"),
            labels=_ENTAILS,
        ),
        Task(key="wnli", title="WNLI", texts=("sentence1", "sentence2"), hub_texts=("sentence1", "sentence2")),
    )
}


def task_of(key: str) -> Task:
    """A task by its name.

    Raises:
        FinetuneError: there is none.
    """
    if key not in TASKS:
        raise FinetuneError(f"a task is one of {', '.join(TASKS)}, got {key!r}; give one of them")
    return TASKS[key]


def key_of_folder(name: str) -> str:
    """What a folder's name is as the key of a task: `STS-B`, `sts-b` and `STSB` are all stsb."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
