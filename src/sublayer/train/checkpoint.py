"""Checkpoints that are whole or do not exist.

A checkpoint folder counts only when its `manifest.json` matches: the manifest lists the sha256 of every file, carries a
hash of itself, and is moved into place last. It proves that the files are those that were written, not who wrote them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from sublayer.whole_files import sync_folder, write_atomically

from .errors import TrainError

MANIFEST = "manifest.json"
SCHEMA = "sublayer.checkpoint/1"
_NAME = re.compile(r"checkpoint-(\d+)")
_log = logging.getLogger(__name__)


def commit(folder: Path, facts: dict[str, Any]) -> None:
    """Make `folder` a checkpoint: flush its files to the disk, hash them, then put the manifest in place.

    Args:
        folder: a finished folder `checkpoint-<step>`.
        facts: kept in the manifest and given back by `verify` (step, hash of the settings).
    """
    files: dict[str, str] = {}
    for name in sorted(_names(folder)):
        with open(folder / name, "rb") as stream:
            os.fsync(stream.fileno())
            files[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    write_atomically(folder / MANIFEST, _written(_signed({"schema": SCHEMA, **facts, "files": files})))
    sync_folder(folder.parent)  # before an older one is removed


def verify(folder: Path) -> dict[str, Any]:
    """The facts of a checkpoint, after checking every byte of it.

    Raises:
        TrainError: what is wrong with it.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise TrainError(f"{folder} has no readable {MANIFEST} ({error})") from None
    # the text itself is compared: other white space would be the same JSON, and no text that was written
    if not isinstance(manifest, dict) or text != _written(_signed(manifest)) or manifest.get("schema") != SCHEMA:
        raise TrainError(f"{folder / MANIFEST} does not match its own hash")
    found = _names(folder)
    if found != set(manifest["files"]):
        odd = ", ".join(sorted(found ^ set(manifest["files"])))
        raise TrainError(f"{folder} does not hold the files that its manifest lists (differing: {odd})")
    for name, expected in manifest["files"].items():
        try:
            with open(folder / name, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise TrainError(f"{folder / name} cannot be read ({error.strerror or error})") from None
        if digest != expected:
            raise TrainError(f"{folder / name} does not match its hash")
    return manifest


def steps(out: Path) -> list[tuple[int, Path]]:
    """Folders named like checkpoints, newest first; nothing is said of their content."""
    named = ((_NAME.fullmatch(path.name), path) for path in out.glob("checkpoint-*") if path.is_dir())
    return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)


def latest(out: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, with its facts.

    A folder without a manifest was never finished and is removed. One whose manifest does not match is moved to
    `damaged-checkpoint-<step>`, so that it can be looked at, and the one before it is taken.
    """
    damaged = 0
    for step, folder in steps(out):
        if not (folder / MANIFEST).exists():
            _log.info("%s was not finished: removed", folder)
            shutil.rmtree(folder)
            continue
        try:
            return folder, verify(folder)
        except TrainError as error:
            aside = next(p for n in range(1, 1000) if not (p := out / f"damaged-checkpoint-{step}-{n}").exists())
            folder.rename(aside)
            _log.warning("checkpoint of step %d is damaged (%s): moved to %s", step, error, aside)
            damaged += 1
    if damaged:
        _log.warning("no checkpoint is whole (%d damaged): the run begins again", damaged)
    return None


def sweep(out: Path) -> None:
    """Remove the folders that were never finished."""
    for _, folder in steps(out):
        if not (folder / MANIFEST).exists():
            shutil.rmtree(folder)


def rotate(out: Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints. A manifest goes first, so that a half-removed folder is none."""
    for _, folder in steps(out)[keep:]:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _names(folder: Path) -> set[str]:
    """Everything in a checkpoint but its manifest and its folders; a link counts as what it is, wherever it points."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found} - {MANIFEST}


def _written(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2)


def _signed(manifest: dict[str, Any]) -> dict[str, Any]:
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**body, "sha256": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}
