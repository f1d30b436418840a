"""Files that say themselves whether they are whole: JSON with a hash of every byte, and lists of hashes of other files.

A signed file begins with the key ``file_sha256``: the sha256 of the file's bytes with the 64 digits of the hash itself
as zeros. One byte changed, added or lost anywhere is found. It proves that the file is as it was written, not who
wrote it. Files of versions before this have no such key and are read as they are: `read` takes a file for one of them
only if its first key has another length, so that no single changed byte turns a signed file into one. Imports no torch.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sublayer import plain_files
from sublayer.whole_files import write_atomically

KEY = "file_sha256"
ASIDE = "damaged-"  # what a file or folder that did not match is called from then on
_BLANK = "0" * 64
_ALMOST = re.compile(rb'\s*\{\s*"[^"]{%d}"\s*:\s*"[0-9a-f]{64}"' % len(KEY))
_HASH = re.compile(rb'\s*\{\s*"' + KEY.encode() + rb'": "([0-9a-f]{64})"')
_log = logging.getLogger(__name__)


class Damaged(ValueError):
    """A file is not as it was written; the message names it and says in what."""


def text(body: Mapping[str, Any], indent: int | None = 2) -> str:
    """The content of a signed file. ``body`` holds JSON values; NaN and infinity raise ValueError."""
    rest = {key: value for key, value in body.items() if key != KEY}
    blank = json.dumps({KEY: _BLANK, **rest}, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    return blank.replace(_BLANK, hashlib.sha256(blank.encode()).hexdigest(), 1)


def write(path: Path, body: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a signed file, whole or not at all."""
    write_atomically(path, text(body, indent))


def read(path: Path) -> dict[str, Any]:
    """The body of a signed file, without its hash, or of one that an earlier version wrote without any.

    Raises:
        Damaged: it is not as it was written, or no JSON object.
        OSError: it cannot be read; FileNotFoundError if it is not there.
    """
    return parse(plain_files.read_bytes(path), str(path))


def parse(raw: bytes, shown: str) -> dict[str, Any]:
    """`read` for bytes; ``shown`` names them in messages."""
    try:
        body = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{shown} was changed or cut short: it is no JSON ({_short(error)})") from None
    if not isinstance(body, dict):
        raise Damaged(f"{shown} holds a {type(body).__name__}, not an object")
    said = _HASH.match(raw)
    if said is not None:
        blank = raw[: said.start(1)] + _BLANK.encode() + raw[said.end(1) :]
        if hashlib.sha256(blank).hexdigest() != said[1].decode():
            raise Damaged(f"{shown} was changed or damaged: its hash does not fit its content")
        del body[KEY]
        return body
    if KEY in body or _ALMOST.match(raw):
        raise Damaged(f"{shown} was changed or damaged: it begins with no readable hash")
    return body


def is_signed(path: Path) -> bool:
    """Whether the file has a hash, fitting or not."""
    try:
        with open(path, "rb") as stream:
            return _HASH.match(stream.read(200)) is not None
    except OSError:
        return False


# -- lists of hashes -------------------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Name relative to ``folder`` -> sha256, in the order of the names."""
    return {relative(path, folder): file_sha256(path) for path in sorted(paths)}


def relative(path: Path, folder: Path) -> str:
    """A path as lists name it."""
    return os.path.relpath(path, folder).replace(os.sep, "/")


def damage(folder: Path, listed: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with the files of a list: name -> "missing" or "changed"; empty when all are as they were."""
    found: dict[str, str] = {}
    for name, expected in listed.items():
        path = folder / name
        try:
            if not path.is_file():
                found[name] = "missing"
            elif file_sha256(path) != expected:
                found[name] = "changed"
        except OSError as error:
            found[name] = f"cannot be read ({error.strerror})"
    return found


def added(folder: Path, listed: Iterable[str]) -> list[str]:
    """Files in and under ``folder`` that are not listed, relative to it. Links count as files."""
    there = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    return sorted(there - set(listed))


# -- setting aside ---------------------------------------------------------------------------------------------------


def aside(path: Path, into: Path | None = None) -> Path:
    """Rename a file or folder to ``damaged-NAME-N``, in ``into`` (default: where it is); its new path."""
    place = into or path.parent
    for number in range(1, 100_000):
        target = place / f"{ASIDE}{path.name}-{number}"
        if not (target.exists() or target.is_symlink()):
            path.rename(target)
            return target
    raise OSError(f"{place} holds too many files named {ASIDE}{path.name}: remove some")


def read_or_set_aside(path: Path, then: str) -> dict[str, Any] | None:
    """The body of a signed file; None where there is none, or where it was damaged and is out of the way now.

    ``then`` ends the warning and says what happens next, such as "making it again".
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            _log.warning("%s; set aside as %s, %s", error, aside(path), then)
    return None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


__all__ = [
    "ASIDE", "KEY", "Damaged", "added", "aside", "damage", "file_sha256", "hashes", "is_signed", "parse", "read",
    "read_or_set_aside", "relative", "text", "write",
]  # fmt: skip
