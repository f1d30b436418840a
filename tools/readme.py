"""Run what the README shows, and compare it with what the README says.

Four kinds of fenced block count:

- `python`: all of them, in order, as one program, in an empty folder;
- `output`: what that program prints, among other things;
- `console`: lines after `$ ` are commands; the lines below a command are its output, compared word for word, where a
  line `...` stands for any number of lines. No output below a command: only its exit status counts. Each block is
  run in an empty folder of its own;
- `sh`: commands for a checkout, such as `make demo`. They are not run from here, but each `make` target must exist.

`<!-- slow -->` on the line before a block leaves it to `make readme`; the test suite runs the others.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (\w+) -->\n\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the line it starts on, and whether it is marked slow."""

    language: str
    text: str
    line: int
    slow: bool


class Mismatch(AssertionError):
    """A command did not do what the README says."""


def blocks(markdown: str) -> Iterator[Block]:
    """Yield every fenced block of a page."""
    for found in FENCE.finditer(markdown):
        before = markdown[: found.start()]
        mark = MARK.search(before)
        if mark and mark[1] != "slow":
            raise ValueError(f"line {before.count(chr(10))}: a block can be marked slow, not {mark[1]!r}")
        yield Block(found[1], found[2], before.count("\n") + 1, mark is not None)


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield (command, expected output) for each `$ ` line of a console block; a trailing backslash continues it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, rest = [], part
        while True:
            line, _, rest = rest.partition("\n")
            command.append(line)
            if not line.endswith("\\"):
                break
        yield "\n".join(command), rest.strip("\n")


def agrees(said: str, expected: str) -> bool:
    """Is `said` the expected output? Trailing spaces do not count; a line `...` is any number of lines."""
    if not expected:
        return True
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == "..." else re.escape(line.rstrip()) + "\n" for line in expected.splitlines()
    )
    text = "".join(line.rstrip() + "\n" for line in said.strip("\n").splitlines())
    return re.fullmatch(pattern, text) is not None


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which `sublayer` and `python` are those of the interpreter that runs this file."""
    tools = folder / ".bin"
    tools.mkdir(exist_ok=True)
    for name, call in {"sublayer": "-m sublayer", "python": ""}.items():
        shim = tools / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        shim.chmod(0o755)
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": source, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}


def run_console(block: Block, folder: Path) -> None:
    """Run the commands of a console block in `folder`.

    Raises:
        Mismatch: a command failed, or printed something else than the README shows.
    """
    for command, expected in commands(block):
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
        )
        where = f"README, line {block.line}: $ {command}"
        if done.returncode:
            raise Mismatch(f"{where}\nexit status {done.returncode}\n{done.stdout}{done.stderr}")
        if not agrees(done.stdout, expected):
            raise Mismatch(f"{where}\nthe README shows:\n{expected}\n\nit printed:\n{done.stdout}")


def run_python(group: list[Block], folder: Path) -> None:
    """Run the Python blocks as one program, in a process of its own, in `folder`; it must print the output blocks.

    Raises:
        Mismatch: the program failed, with the README's line number in the traceback; or it printed something else.
    """
    lines: list[str] = []
    for block in (block for block in group if block.language == "python"):
        lines += [""] * (block.line - len(lines)) + block.text.splitlines()
    program = folder / "README.py"
    program.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, program.name], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Mismatch(f"the README's Python blocks:\n{done.stdout}{done.stderr}")
    for block in (block for block in group if block.language == "output"):
        if block.text not in done.stdout:
            raise Mismatch(f"README, line {block.line} shows:\n{block.text}\nthe Python blocks print:\n{done.stdout}")


def make_targets(page: str) -> set[str]:
    """Return the `make` targets that a page's `sh` blocks name."""
    text = "\n".join(block.text for block in blocks(page) if block.language == "sh")
    return set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE))


def main() -> int:
    """Run everything; return the number of failures."""
    parser = argparse.ArgumentParser(description="Run the README's commands and compare what they print.")
    parser.add_argument("--quick", action="store_true", help="leave out the blocks that are marked slow")
    parser.add_argument("--slow", action="store_true", help="only what the tests leave out")
    given = parser.parse_args()
    page = [block for block in blocks(README.read_text()) if not (given.quick and block.slow)]
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        jobs: list[tuple[str, Callable[[], None]]] = []
        for block in page:
            if block.language == "console" and (block.slow or not given.slow):
                jobs.append((f"line {block.line}", partial(run_console, block, _empty(name, f"line-{block.line}"))))
        if not given.slow or any(block.slow for block in page if block.language == "python"):
            jobs.append(("Python blocks", partial(run_python, page, _empty(name, "python"))))
        for title, job in jobs:
            try:
                job()
                print(f"README, {title}: ok", flush=True)
            except Mismatch as error:
                failures += 1
                print(error, file=sys.stderr, flush=True)
    return failures


def _empty(folder: str, name: str) -> Path:
    """A folder for one block: a reader may begin at any of them."""
    made = Path(folder) / name
    made.mkdir()
    return made


if __name__ == "__main__":
    sys.exit(main())
