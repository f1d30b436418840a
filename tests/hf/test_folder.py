"""A checkpoint folder is written whole or not at all, also by several processes at once."""

import ctypes
from pathlib import Path

import pytest

from sublayer.hf.convert import ConvertError
from sublayer.hf.convert.folder import write_folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def of(name: str, folder: Path) -> None:
    (folder / "weights").write_text(name)
    (folder / f"only-{name}").write_text(name)


def test_the_first_to_end_has_the_folder_and_the_others_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "made"

    def fill(folder: Path) -> None:
        write_folder(target, lambda other: of("theirs", other))  # another process, meanwhile
        of("ours", folder)

    with pytest.raises(ConvertError, match="holds files"):
        write_folder(target, fill)
    assert content(target) == {"weights": "theirs", "only-theirs": "theirs"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("exchange", [True, False])
def test_with_overwrite_the_last_to_end_has_it_whole(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # a system that cannot let two folders change places at once

        def none(*_: object) -> None:
            raise OSError("no such library")

        monkeypatch.setattr(ctypes, "CDLL", none)
    target = tmp_path / "made"
    write_folder(target, lambda folder: of("first", folder))

    def fill(folder: Path) -> None:
        write_folder(target, lambda other: of("theirs", other), overwrite=True)
        of("ours", folder)

    write_folder(target, fill, overwrite=True)
    assert content(target) == {"weights": "ours", "only-ours": "ours"}
    assert list(tmp_path.iterdir()) == [target]


def test_what_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "made"
    write_folder(target, lambda folder: of("first", folder))

    def fill(folder: Path) -> None:
        of("ours", folder)
        raise ConvertError("no")

    with pytest.raises(ConvertError, match="no"):
        write_folder(target, fill, overwrite=True)
    assert content(target) == {"weights": "first", "only-first": "first"}
    assert list(tmp_path.iterdir()) == [target]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    target = tmp_path / "made"
    target.mkdir()
    write_folder(target, lambda folder: of("ours", folder))
    assert content(target) == {"weights": "ours", "only-ours": "ours"}
