"""Files of settings are plain files with plain values."""

import json
import os
from pathlib import Path

import pytest

from sublayer import plain_files
from sublayer.notation import DesignError, parse
from sublayer.recipes import RecipeError, load
from sublayer.study import StudyError, read_config
from sublayer.train import TrainError, TrainSpec
from sublayer.train.documents import open_source

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def strange(folder: Path, how: str) -> Path:
    """Something in place of a file that never ends when it is read."""
    path = folder / "settings.yaml"
    if how == "fifo":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as stream:
            stream.truncate(1 << 33)
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("how", ["fifo", "device", "folder", "large"])
def test_what_is_no_plain_file_is_refused_at_once(how: str, tmp_path: Path) -> None:
    path = strange(tmp_path, how)
    with pytest.raises(OSError, match=r"must be a plain file|is it the right file"):
        plain_files.read_bytes(path)
    with pytest.raises(StudyError):
        read_config(path)
    with pytest.raises(RecipeError):
        load(path)
    with pytest.raises(TrainError):
        TrainSpec.load(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 2: references"),
        ("a: &a [*a]\n", "line 1: references"),
        ("steps: 3\nsteps: 4\n", "line 2: steps is there twice"),
        ("a: !!python/object/apply:os.system ['touch pwned']\n", "could not determine a constructor"),
        ("[" * 3000, "recursion"),
        (f"steps: {'9' * 5000}\n", "digits"),
        ("a: 2026-13-45\n", "month"),
        ("\x00", "special characters"),
    ],
)
def test_yaml_that_is_more_than_plain_values_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        plain_files.read_yaml(path)
    with pytest.raises(StudyError):
        read_config(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.timeout(20)
def test_a_depth_that_nobody_builds_is_refused_at_once() -> None:
    with pytest.raises(DesignError, match="a depth is at most"):
        parse("post-norm").check_depth(1 << 63)


@pytest.mark.parametrize("name", ["steps", "seq", "seed", "batch"])
def test_a_number_that_no_float_holds_is_refused(name: str) -> None:
    with pytest.raises(TrainError, match=rf"{name} must be at most 2\*\*53, got one of \d+ bits"):
        TrainSpec.from_dict({"design": "paf", "steps": 10, name: 10**400})


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000], ids=["digits", "deep"])
def test_a_line_that_cannot_be_read_has_a_number(value: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{json.dumps({"text": "one"})}\n{{"text": "two", "n": {value}}}\n')
    with pytest.raises(TrainError, match="line 2 is not JSON"):
        list(open_source(str(path)).documents())


def test_a_damaged_column_of_text_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a plain word", "another one"]}), path, compression="none")
    path.write_bytes(path.read_bytes().replace(b"plain", b"pl\xf0in"))
    with pytest.raises(TrainError, match="is damaged"):
        list(open_source(str(path)).documents())
