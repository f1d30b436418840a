"""`sublayer bench`: run the repository's benchmarks, and show what they found beside the goals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

NOT_ONE = ("pairs", "peers")  # what the benchmarks share
SCHEMA = "sublayer.pairs/1"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("benchmarks"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the records.  [default: the benchmarks' own]")
@click.option("--quick", is_flag=True, help="Small shapes, to see that all of it runs: the figures mean nothing.")
@click.option("--list", "listing", is_flag=True, help="Show what there is, and what was last found.")
@click.option("--set", "words", multiple=True, metavar="'--OPTION VALUE'", help="Hand an option to each benchmark.")
def bench(
    names: tuple[str, ...], folder: Path, out: Path | None, quick: bool, listing: bool, words: tuple[str, ...]
) -> None:
    """Measure speed beside peers and limits, in turns, and show the median ratios with their spread.

    NAMES are benchmarks of a checkout of the repository; without any, all are run, which takes hours. Peers come
    with the extra `bench`.
    """
    there = _benchmarks(folder)
    unknown = [name for name in names if name not in there]
    if unknown:
        raise click.UsageError(f"a benchmark is one of {', '.join(there)}; got {', '.join(unknown)}")
    if listing:
        for name, file in there.items():
            click.echo(f"{name:12} {_first_line(file)}")
            _show(file.with_suffix(".json"))
        return
    failed = []
    for name in names or there:
        record = (out or folder) / f"{name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        click.echo(f"== {name}: {_first_line(there[name])}")
        command = [sys.executable, str(there[name]), "--out", str(record), *(["--quick"] if quick else [])]
        code = subprocess.run([*command, *(part for word in words for part in word.split())], check=False).returncode
        if code == 2 and not names:
            click.echo(f"{name} cannot run here, and is left out")
        elif code:
            failed.append(name)
    if failed:
        raise click.ClickException(f"these did not run to their end: {', '.join(failed)}; what they said is above")


def _benchmarks(folder: Path) -> dict[str, Path]:
    found = {file.stem: file for file in sorted(folder.glob("*.py")) if file.stem not in NOT_ONE}
    if not found:
        raise click.UsageError(
            f"benchmarks are files of a checkout of the repository, and {folder} holds none: run this there, or give "
            "--folder"
        )
    return found


def _first_line(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return text.split('"""')[1].strip().splitlines()[0] if text.startswith('"""') else ""


def _show(record: Path) -> None:
    if not record.exists():
        return
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    for row in found["rows"] if found.get("schema") == SCHEMA else ():
        goal = ""
        if row["reach"] is not None:
            goal = f"  {row['bound']} {row['reach']:g}: {'reached' if row['reached'] else 'missed'}"
        spread = f"{row['ratio']:8.2f} ({row['low']:.2f} to {row['high']:.2f})"
        click.echo(f"  {spread}  {row['work']} / {row['against']}{goal}")
