"""Fuzzing by coverage (atheris): inputs that reach new lines of the program are kept and changed further.

`notation` and each kind of the trial `files` is a target, in a process of its own that is begun with good inputs. What
counts as a failure is what counts in those trials. An input that fails is written to `--kept FOLDER`, and the process
begins again with another seed until its share of inputs is used up. Needs atheris: `pip install sublayer[fuzz]`.
"""

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HANG, MOST_MIB = 60, 2048
MOST_FAILURES = 20  # after so many a target is given up
_DONE = re.compile(r"^#(\d+)\s.*?cov: (\d+)", re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Run and write the record."""
    from torture import table  # here: the process that is fuzzed has to instrument before it imports

    parser = table.parser("coverage", __doc__, seed=1)
    parser.add_argument("--notation", type=int, default=200_000, help="inputs of the notation")
    parser.add_argument("--files", type=int, default=20_000, help="inputs of all kinds of files together")
    parser.add_argument("--target", help="one target")
    parser.add_argument("--kept", type=Path, help="folder for inputs that failed")
    given = parser.parse_args(arguments)
    if given.quick:
        given.notation, given.files = min(given.notation, 2000), min(given.files, 500)
    began = time.monotonic()
    if importlib.util.find_spec("atheris") is None:
        print("not run: atheris is not installed; pip install sublayer[fuzz]")
        if given.out is not None:
            table.write(given.out, table.record("coverage", given, began, [], {"not run": "atheris is not installed"}))
        return 0
    with tempfile.TemporaryDirectory() as name:
        kinds = _seeds(Path(name))
        shares = {kind: given.files // (len(kinds) - 1) for kind in kinds} | {"notation": given.notation}
        lines, details = [], {}
        for kind in [kind for kind in kinds if given.target in (None, kind)]:
            line, details[kind] = _tried(kind, kinds[kind], shares[kind], Path(name), given)
            lines.append(line)
            print(f"{kind}: {line.measured}", flush=True)
            if given.out is not None:
                table.write(given.out, table.record("coverage", given, began, lines, details))
    return table.finish("coverage", given, began, lines, details)


def _seeds(folder: Path) -> dict[str, list[bytes]]:
    """Target -> good inputs."""
    from torture import files, fuzz_notation

    found = {"notation": [text.encode() for text in fuzz_notation.seeds()]}
    (folder / "seeds").mkdir()
    for kind, target in files.targets(folder / "seeds").items():
        found[kind] = [good[_name(target, good)] for good in target.good if _name(target, good) in good]
    return found


def _name(target: Any, good: Any) -> str:
    """The file of a folder that inputs stand for."""
    return next(name for name in target.spoilt if name in good)


def _tried(kind: str, seeds: list[bytes], count: int, folder: Path, given: argparse.Namespace) -> Any:
    """One target: its line of the table, and what failed."""
    from torture import table

    corpus, kept = folder / "corpus" / kind, folder / "failed" / kind
    corpus.mkdir(parents=True)
    kept.mkdir(parents=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    ran, covered, failures = 0, 0, list[dict[str, str]]()
    while ran < count and len(failures) < MOST_FAILURES:
        done = subprocess.run(
            [sys.executable, str(HERE / "coverage.py"), kind, f"-runs={count - ran}",
             f"-seed={given.seed + len(failures)}", f"-timeout={HANG}", f"-rss_limit_mb={MOST_MIB}",
             "-max_len=20000", "-print_final_stats=1", f"-artifact_prefix={kept}/", str(corpus)],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        steps = _DONE.findall(done.stderr)
        covered = max([covered, *(int(cov) for _, cov in steps)])
        this = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        ran += int(this[1]) if this else max([1, *(int(number) for number, _ in steps)])
        found = sorted(kept.iterdir(), key=lambda path: path.stat().st_mtime)
        if done.returncode == 0 and not found[len(failures) :]:
            break
        failures.append({"error": done.stderr[-3000:], "input": _shown(found[-1] if found else None, given.kept)})
    measured = f"{ran:,} inputs, {covered:,} places of the program reached: {len(failures)} failed"
    promise = f"inputs led by coverage, {kind}: read, or refused in one message"
    return table.Line(promise, f"{count:,} inputs: none fails", measured, not failures), failures


def _shown(path: Path | None, kept: Path | None) -> str:
    if path is None:
        return "none was written"
    data = path.read_bytes()
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        (kept / path.name).write_bytes(data)
    return data[:2000].decode("utf-8", "backslashreplace")


# -- the process that is fuzzed --------------------------------------------------------------------------------------


def _child(arguments: list[str]) -> int:
    import atheris

    kind = arguments[0]
    if kind == "notation":
        with atheris.instrument_imports(include=["sublayer.notation"]):
            from torture import fuzz_notation

        def one(data: bytes) -> None:
            drawn = hashlib.sha256(data).digest()[0] % 8 == 0
            fuzz_notation.check(data.decode("utf-8", "replace"), drawn)

    else:
        with atheris.instrument_imports(include=["sublayer", "yaml"]):
            from torture import files, fuzz_folders
        folder = Path(tempfile.mkdtemp())
        target = files.targets(folder)[kind]
        good = target.good[0]
        name = _name(target, good)

        def one(data: bytes) -> None:
            fuzz_folders.put({**good, name: data}, folder / "tried")
            before = files.state(folder / "tried")
            try:
                target.read(folder / "tried")
            except Exception as error:
                if not files.expected(error):
                    raise
            assert files.state(folder / "tried") == before, "changed on the disk"

    atheris.Setup([sys.argv[0], *arguments[1:]], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.path[:1] = [str(HERE.parent), str(HERE.parent.parent / "src"), str(HERE.parent.parent)]
    sys.exit(_child(sys.argv[1:]))
