"""Writing a checkpoint folder whole or not at all, and what is known of how it was made."""

import contextlib
import ctypes
import errno
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from sublayer import __version__
from sublayer.hf.convert.errors import ConvertError
from sublayer.hf.convert.rewire import Conversion
from sublayer.hf.convert.sample import Sample

RECORD = "conversion.json"
SCHEMA = "sublayer.conversion/1"

# What a tokenizer is read from.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a target that holds something, or is no folder.

    Raises:
        ConvertError: with the remedy.
    """
    if folder.is_dir():
        if not overwrite and any(folder.iterdir()):
            raise _taken(folder)
    elif folder.exists() or folder.is_symlink():
        raise ConvertError(f"a checkpoint is a folder, and {folder} is a file: give another name")


def write_folder(folder: Path, fill: Callable[[Path], None], overwrite: bool = False) -> None:
    """Let ``fill`` write into a new folder beside ``folder``, then put it in its place.

    If anything fails, what was at ``folder`` is as it was, and nothing is left beside it. Of several processes that
    write to one folder at once, the first to end has it and the others are refused; with ``overwrite`` the last to end
    has it.

    Raises:
        ConvertError: the folder holds files, since before or since ``fill`` began.
    """
    check_target(folder, overwrite)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fill(new)
        os.chmod(new, 0o777 & ~_umask())  # mkdtemp lets only the owner in
        if not _placed(new, folder):
            if not overwrite:
                raise _taken(folder)
            _exchange(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _taken(folder: Path) -> ConvertError:
    return ConvertError(
        f"a checkpoint is written to a new or empty folder, and {folder} holds files: give another folder, or "
        "--overwrite"
    )


def _placed(new: Path, folder: Path) -> bool:
    """Whether the new folder could take its place: one that is not there, or that is empty."""
    try:
        os.rename(new, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _exchange(new: Path, folder: Path) -> None:
    """Let two folders change places: at once where the system can (Linux), else with a moment without the old one."""
    at_cwd, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL(None).renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(folder), exchange) == 0:
            return
    old = new.with_name(f"{new.name}.old")
    try:
        while not _placed(new, folder):  # another process may put its own there meanwhile
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, old)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def record(conversion: Conversion, sample: Sample, source: str, command: Sequence[str], seed: int) -> dict[str, Any]:
    """What `conversion.json` says: designs, the fate of every parameter, figures, versions, command, seed, sample."""
    return {
        "schema": SCHEMA,
        "source": source,
        "command": list(command),
        "versions": {
            "sublayer": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "seed": seed,
        "sample": {"source": sample.source, "sha256": sample.sha256, "notice": sample.notice},
        **conversion.to_dict(),
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
