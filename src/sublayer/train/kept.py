"""What a run leaves in its folder, and whether it is still what was written.

`run.json` comes last and is signed. Under `files` it has the sha256 of everything that others read: settings, facts of
the data, records, predictions, and the model's folder. A run whose files do not fit is not finished; to go on with it,
what is damaged or was added to the model is set aside as `damaged-...`. Logs and progress are for people and not
listed. Importing this module imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sublayer import signed

SPEC, DATA, RESULT = "spec.json", "data.json", "run.json"
METRICS, PROGRESS, LOG = "metrics.jsonl", "progress.json", "log.txt"
MODEL = "model"  # the final weights, where no other folder is asked for
# Of the run's own folder: not part of its result.
_LOOSE = frozenset({RESULT, PROGRESS, LOG, "output.txt"})
_log = logging.getLogger("sublayer")


def write_row(row: dict[str, Any], out: Path, more: Iterable[str] = ()) -> None:
    """Write `run.json`: the row, which gets the hashes of the run's files.

    Args:
        row: has `model`, the folder of the weights relative to `out`, or None.
        out: folder of the run.
        more: names of further files of the result.
    """
    paths = [out / name for name in (SPEC, DATA, METRICS, *more)]
    if row.get("model"):
        paths += _files(out, out / row["model"])
    row["files"] = signed.hashes(out, {path for path in paths if path.is_file()})
    signed.write(out / RESULT, row)


def read_row(out: Path, files: bool = True) -> tuple[dict[str, Any] | None, str | None]:
    """The row of a run that ended, and what is wrong with it: (None, None) where there is none.

    Args:
        out: folder of the run.
        files: also look at the files that a finished run lists. Rows of earlier versions list none.
    """
    try:
        row = signed.read(out / RESULT)
    except OSError:
        return None, None
    except signed.Damaged as error:
        return None, str(error)
    if not files or row.get("status") not in ("ok", "diverged"):
        return row, None
    found = _damage(out, row)
    return row, "; ".join(f"{out / name} is {what}" for name, what in found.items()) or None


def set_aside(out: Path) -> list[str]:
    """Rename what is damaged in a run's folder, so that it is made again. What was renamed, in words."""
    told: list[str] = []

    def move(path: Path, why: str) -> None:
        if path.exists() or path.is_symlink():
            told.append(f"{why}: set aside as {signed.aside(path, out)}")
        else:
            told.append(why)

    try:
        signed.read(out / SPEC)
    except OSError:
        pass
    except signed.Damaged as error:
        move(out / SPEC, str(error))
    row, problem = read_row(out, files=False)
    if problem is not None:
        move(out / RESULT, problem)
    elif row is not None and row.get("status") in ("ok", "diverged"):
        found = _damage(out, row)
        for name, what in found.items():
            move(out / name, f"{out / name} is {what}")
        if set(found.values()) - {"added"}:
            move(out / RESULT, "so the run is not finished")
    for text in told:
        _log.warning("%s", text)
    return told


def _damage(out: Path, row: dict[str, Any]) -> dict[str, str]:
    """File -> missing, changed or added."""
    listed = row.get("files")
    if not isinstance(listed, dict):
        return {}
    found = signed.damage(out, listed)
    if row.get("model"):
        there = [signed.relative(path, out) for path in sorted(_files(out, out / row["model"]))]
        found |= {name: "added" for name in there if name not in listed}
    return found


def _files(out: Path, model: Path) -> list[Path]:
    """The files of a model's folder. Where the run's folder is the model's, not those that are no part of it."""
    if not model.is_dir():
        return []
    if model.resolve() != out.resolve():
        return [path for path in model.rglob("*") if path.is_symlink() or not path.is_dir()]
    return [
        path
        for path in model.iterdir()
        if not path.is_dir() and path.name not in _LOOSE and not path.name.startswith((".", signed.ASIDE))
    ]
