"""The official files: what is read, what is left out and counted, and what is refused with its place."""

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from sublayer.finetune import TASKS, FinetuneError, read, task_of
from sublayer.finetune.data import tasks_in
from sublayer.finetune.tasks import HUB, key_of_folder
from tests.finetune.files import rows, write


@pytest.mark.parametrize("key", list(TASKS))
def test_every_task_is_read_as_it_is_distributed(glue: Path, key: str) -> None:
    data = read(task_of(key), str(glue))
    assert len(data.train) == 48
    assert [len(split) for split in data.dev.values()] == [24] * len(data.task.dev)
    found = [good for _, _, good in rows(1, 48)]
    want = {
        "mnli": [0 if good else 1 + i % 2 for i, good in enumerate(found)],
        "qnli": [int(not good) for good in found],
        "rte": [int(not good) for good in found],
        "stsb": [4.25 if good else 0.5 for good in found],
    }.get(key, [int(good) for good in found])
    assert data.train.labels == want
    assert {len(texts) for texts in data.train.texts} == {1 if key in ("cola", "sst2") else 2}
    assert data.facts["rows"] == {"train": 48, **dict.fromkeys(data.task.dev, 24)}
    assert set(data.facts["files"]) == {"train.tsv", *data.task.dev.values()}


def test_quotes_and_odd_characters_are_text(glue: Path) -> None:
    texts = [texts[0] for texts in read(task_of("cola"), str(glue)).train.texts]
    assert texts[0] == '"' + rows(1, 48)[0][0]
    assert texts[1].endswith("\x85\u2028 is"), "no line ends there"
    assert not any("\r" in text for text in texts)
    pairs = read(task_of("mrpc"), str(glue)).train.texts
    assert pairs[2][0] == '"' + rows(1, 48)[2][0]


def test_broken_rows_of_qqp_are_left_out_and_counted(glue: Path, tmp_path: Path) -> None:
    data = read(task_of("qqp"), str(glue))
    assert data.facts["skipped"] == {"train.tsv": {"count": 1, "first_lines": [7]}}
    assert data.train.index[4:6] == [4, 6], "numbers are of rows in the file"
    folder = tmp_path / "QQP"
    shutil.copytree(glue / "QQP", folder)
    lines = (folder / "train.tsv").read_text().splitlines()
    (folder / "train.tsv").write_text("\n".join([*lines, "1\t2\t3", "1\t2\t3\ta\tb\tmaybe"]) + "\n")
    with pytest.raises(FinetuneError, match=r"3 of 51 rows are broken, the first in line 7"):
        read(task_of("qqp"), str(folder))


def test_folders_in_any_case_and_the_task_s_own(glue: Path, tmp_path: Path) -> None:
    for name in ("sts_b", "cola", "Mnli"):
        shutil.copytree(glue / {"sts_b": "STS-B", "cola": "CoLA", "Mnli": "MNLI"}[name], tmp_path / name)
    (tmp_path / "notes").mkdir()
    assert list(tasks_in(str(tmp_path))) == ["mnli", "cola", "stsb"], "in the order of tables"
    whole, own = read(task_of("stsb"), str(tmp_path)), read(task_of("stsb"), str(tmp_path / "sts_b"))
    assert whole.facts["sha256"] == own.facts["sha256"]
    plain = tmp_path / "files"
    shutil.copytree(glue / "RTE", plain)
    assert read(task_of("rte"), str(plain)).facts["sha256"] == read(task_of("rte"), str(glue)).facts["sha256"]
    shutil.copytree(glue / "CoLA", tmp_path / "CO-LA")
    with pytest.raises(FinetuneError, match="two folders of cola"):
        tasks_in(str(tmp_path))
    assert key_of_folder("STS-B") == "stsb"


def test_the_hash_sees_one_changed_byte(glue: Path, tmp_path: Path) -> None:
    folder = tmp_path / "RTE"
    shutil.copytree(glue / "RTE", folder)
    before = read(task_of("rte"), str(folder)).facts
    content = (folder / "dev.tsv").read_bytes()
    (folder / "dev.tsv").write_bytes(content.replace(b"stream", b"steam", 1))
    after = read(task_of("rte"), str(folder)).facts
    assert before["sha256"] != after["sha256"]
    assert before["rows_sha256"]["train"] == after["rows_sha256"]["train"]
    assert before["rows_sha256"]["dev"] != after["rows_sha256"]["dev"]


def test_mrpc_before_its_dev_set_was_taken_out(tmp_path: Path) -> None:
    found = rows(1, 40)
    lines = [f"{int(good)}\t{i}\t{i + 100}\t{a}\t{b}" for i, (a, b, good) in enumerate(found)]
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    write(tmp_path / "MRPC" / "msr_paraphrase_train.txt", [header, *lines], "\r\n", mark=True)
    write(tmp_path / "MRPC" / "dev_ids.tsv", [f"{i}\t{i + 100}" for i in range(0, 40, 4)])
    data = read(task_of("mrpc"), str(tmp_path))
    assert data.dev["dev"].index == list(range(0, 40, 4))
    assert len(data.train) == 30
    assert data.dev["dev"].texts[1] == found[4][:2]
    assert set(data.facts["files"]) == {"msr_paraphrase_train.txt", "dev_ids.tsv"}


# -- what is refused -------------------------------------------------------------------------------------------------


def changed(glue: Path, tmp_path: Path, name: str, file: str, change: Any) -> str:
    shutil.copytree(glue / name, tmp_path / name)
    path = tmp_path / name / file
    path.write_bytes(change(path.read_bytes()))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("key", "name", "change", "message"),
    [
        ("rte", "RTE", lambda b: b.replace(b"sentence2", b"hypothesis"), "line 1: the header of RTE names sentence1, "),
        (
            "rte",
            "RTE",
            lambda b: b.replace(b"\tentailment", b"\tyes", 1),
            "is one of entailment, not_entailment, got 'ye",
        ),
        ("rte", "RTE", lambda b: b.replace(b"\tentailment", b"", 1), "a row of RTE has 4 cells .*, got 3"),
        ("rte", "RTE", lambda b: b"", "is empty"),
        ("rte", "RTE", lambda b: b.split(b"\n")[0] + b"\n", "has no rows in train"),
        (
            "rte",
            "RTE",
            lambda b: b.replace(b"not_entail", b"entail"),
            "every row that RTE .* has the label 'entailment'",
        ),
        (
            "cola",
            "CoLA",
            lambda b: b"source\tlabel\tmark\tsentence\r\n" + b,
            "line 1: label of CoLA is one of 0, 1, got",
        ),
        ("cola", "CoLA", lambda b: b.replace(b"good", b"g\xffd", 1), "files are UTF-8, and this one is not"),
        ("stsb", "STS-B", lambda b: b.replace(b"4.25", b"5.5", 1), r"a number from 0 to 5, got '5.5'"),
        ("stsb", "STS-B", lambda b: b.replace(b"4.25", b"nan", 1), r"a number from 0 to 5, got 'nan'"),
    ],
)
def test_a_file_that_is_not_the_task_s_is_one_message(
    glue: Path, tmp_path: Path, key: str, name: str, change: Any, message: str
) -> None:
    folder = changed(glue, tmp_path, name, "train.tsv", change)
    with pytest.raises(FinetuneError, match=message) as error:
        read(task_of(key), folder)
    assert f"{name}" in str(error.value)


def test_missing_files_and_folders(glue: Path, tmp_path: Path) -> None:
    shutil.copytree(glue / "MNLI", tmp_path / "MNLI")
    (tmp_path / "MNLI" / "dev_mismatched.tsv").unlink()
    with pytest.raises(FinetuneError, match=r"MNLI needs train.tsv, .*; missing: dev_mismatched.tsv"):
        read(task_of("mnli"), str(tmp_path))
    with pytest.raises(FinetuneError, match=r"must hold the files of RTE, .* it has those of mnli"):
        read(task_of("rte"), str(tmp_path))
    with pytest.raises(FinetuneError, match="is the folder of mnli, not of rte"):
        read(task_of("rte"), str(tmp_path / "MNLI"))
    with pytest.raises(FinetuneError, match="is no folder"):
        read(task_of("rte"), str(tmp_path / "nowhere"))
    with pytest.raises(FinetuneError, match="a task is one of mnli, qqp"):
        task_of("squad")


# -- the Hub -----------------------------------------------------------------------------------------------------------


class Table:
    """As much of a data set of the Hub as is read."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


def hub(monkeypatch: pytest.MonkeyPatch, found: Any) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((*arguments, options))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize("key", ["mnli", "stsb", "sst2"])
def test_the_hub_gives_the_same_rows_as_the_files(glue: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    task = task_of(key)
    ours = read(task, str(glue))

    def table(split: Any) -> Table:
        columns = {name: [texts[i] for texts in split.texts] for i, name in enumerate(task.hub_texts)}
        return Table(**columns, label=split.labels, idx=split.index)

    found = {task.hub_dev[name]: table(split) for name, split in ours.dev.items()}
    asked = hub(monkeypatch, {"train": table(ours.train), **found, "test": Table(label=[-1])})
    theirs = read(task, "hub")
    assert asked == [(HUB, key, {})], "no code of the data set is allowed to run"
    assert theirs.facts["rows_sha256"] == ours.facts["rows_sha256"]
    assert theirs.facts["source"] == f"hub:{HUB}:{key}"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (ConnectionError("no route\nmore"), r"cannot be loaded \(no route\): check the network, or give a folder"),
        ({"train": Table(sentence=["a"], label=[0])}, "missing: validation"),
        (
            {"train": Table(text=["a"], label=[0]), "validation": Table()},
            "must have the columns sentence, label; it has",
        ),
        (
            {"train": Table(sentence=["a"], label=[-1]), "validation": Table(sentence=["a"], label=[0])},
            "row 0: a label is a class from 0 to 1, got -1",
        ),
    ],
)
def test_a_hub_that_gives_something_else(monkeypatch: pytest.MonkeyPatch, found: Any, message: str) -> None:
    hub(monkeypatch, found)
    with pytest.raises(FinetuneError, match=message):
        read(task_of("sst2"), "hub")
