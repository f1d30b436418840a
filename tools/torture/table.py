"""What a trial says in the end: lines of promise, figure asked and figure measured, and a record of how they came."""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from sublayer.whole_files import write_atomically

SCHEMA = "sublayer.torture/1"


@dataclass(frozen=True)
class Line:
    """One promise: what was asked, what was measured, and whether that holds."""

    promise: str
    asked: str
    measured: str
    holds: bool


def parser(name: str, text: str | None, seed: int = 0) -> argparse.ArgumentParser:
    """The arguments that every trial takes: --quick, --seed, --out."""
    made = argparse.ArgumentParser(prog=f"python tools/torture {name}", description=text)
    made.add_argument("--quick", action="store_true", help="a short form, for the tests")
    made.add_argument("--seed", type=int, default=seed, help="of everything that is drawn")
    made.add_argument("--out", type=Path, help="JSON record")
    return made


def text(lines: list[Line]) -> str:
    """The lines as a table, one that fails marked."""
    rows = [("promise", "asked", "measured", ""), *((x.promise, x.asked, x.measured, _mark(x)) for x in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)  # fmt: skip


def _mark(line: Line) -> str:
    return "holds" if line.holds else "FAILS"


def finish(name: str, given: argparse.Namespace, began: float, lines: list[Line], details: Any = None) -> int:
    """Print the table, write the record, and give the exit status.

    Args:
        name: of the trial.
        given: its arguments.
        began: `time.monotonic()` when it began.
        lines: the table.
        details: anything else for the record, as JSON values.
    """
    print(text(lines), flush=True)
    if given.out is not None:
        write(given.out, record(name, given, began, lines, details))
    return 0 if lines and all(line.holds for line in lines) else 1


def record(name: str, given: argparse.Namespace, began: float, lines: list[Line], details: Any) -> dict[str, Any]:
    """The record of one trial: its lines, and the command, seed, versions and time that they came from."""
    options = [f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}")
               for key, value in vars(given).items() if key != "out" and value not in (None, False)]  # fmt: skip
    versions = {"python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in ("torch", "transformers", "accelerate")}
    return {
        "schema": SCHEMA,
        "trial": name,
        "command": " ".join(["python tools/torture", name, *options]),
        "seed": given.seed,
        "quick": given.quick,
        "versions": versions,
        "system": platform.platform(),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - began, 1),
        "lines": [asdict(line) for line in lines],
        "details": details,
    }


def lost(name: str, reason: str) -> dict[str, Any]:
    """What stands in for the record of a trial that left none."""
    return {"schema": SCHEMA, "trial": name, "lines": [asdict(Line(name, "a record", reason, False))]}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a record, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
