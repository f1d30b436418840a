"""Fuzzing the files that a user may give: each is read, or refused in one message, and nothing on the disk changes.

Settings of studies, studies of parts, recipes, settings of a run, locks of an audit, tasks in tab-separated files, and
text as .txt, .jsonl and .parquet. A file counts as failed when reading it raises what the command line would show as a
traceback, takes more than a minute, changes a file, or when the process holds more than 2 GB. Contents are a function
of the seed and their number. Only reading is tried: nothing is trained on them.
"""

import collections
import hashlib
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from torch import nn

import sublayer as sl
from sublayer import recipes
from sublayer.audit.lock import read_lock, write_lock
from sublayer.finetune import data as task_data
from sublayer.finetune.tasks import TASKS
from sublayer.study import Plan, Program, read_config
from sublayer.train import TrainSpec
from sublayer.train.documents import open_source
from torture import fuzz_inputs, table

HANG = 60  # seconds
MOST_KIB = 2 * 1024 * 1024
ROOT = Path(__file__).resolve().parents[2]
Read = Callable[[Path], Any]


class _Hung(BaseException):
    """A file took too long; no handler of errors may catch it."""


def _hung(number: int, frame: Any) -> None:
    raise _Hung


def _plan(path: Path) -> None:
    values = read_config(path)
    Plan.make(
        values.pop("designs", []), seeds=tuple(values.pop("seeds", (0,))), lrs=tuple(values.pop("lrs", ())),
        size=values.pop("size", None) or "tiny", **values,
    )  # fmt: skip


def _text(path: Path) -> None:
    for number, _ in enumerate(open_source(str(path)).documents()):
        if number > 1000:
            break


def _lock(folder: Path) -> bytes:
    config = sl.SublayerConfig(
        design="paf", vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model: nn.Module = sl.SublayerModel(config)
    write_lock(sl.audit(model), folder / "lock")
    return (folder / "lock").read_bytes()


def _parquet(folder: Path) -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = {"text": [f"text {i} of a few words" for i in range(20)], "number": list(range(20))}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "seed.parquet")
    return (folder / "seed.parquet").read_bytes()


def targets(folder: Path) -> dict[str, tuple[str, bytes, Read]]:
    """Name -> the file's name, a good content, and what reads it."""
    spec = TrainSpec(design="paf", steps=4)
    study = {"designs": ["post-norm", {"design": "deepnorm", "init": "deepnorm"}], "seeds": [0, 1], "lrs": [0.001],
             "size": "tiny", "steps": 20, "objective": "mlm", "betas": [0.9, 0.98]}  # fmt: skip
    published = sorted((ROOT / "recipes").glob("*.yaml"))[0]
    tsv = "sentence1\tsentence2\tlabel\n" + "".join(f"a {i}\tb {i}\tentailment\n" for i in range(9))
    lines = "".join(f'{{"text": "document {i}", "id": {i}}}\n' for i in range(20))
    return {
        "study": ("study.yaml", yaml.safe_dump(study).encode(), _plan),
        "parts": ("study.yaml", (ROOT / "studies/depth/study.yaml").read_bytes(), Program.load),
        "recipe": ("recipe.yaml", published.read_bytes(), recipes.load),
        "run": ("spec.json", fuzz_inputs.as_json(spec.to_dict()), TrainSpec.load),
        "lock": ("wiring.lock", _lock(folder), read_lock),
        "task": ("train.tsv", tsv.encode(), lambda path: task_data.read(TASKS["rte"], str(path.parent))),
        "text": ("text.txt", b"One line.\n\nAnother document, of two\nlines.\n" * 9, _text),
        "jsonl": ("text.jsonl", lines.encode(), _text),
        "parquet": ("text.parquet", _parquet(folder), _text),
    }


def state(folder: Path) -> dict[str, str]:
    """What lies in a folder, by content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "-"
        for path in sorted(folder.rglob("*"))
    }


def expected(error: BaseException) -> bool:
    """Whether the command line turns an error into one message and status 2."""
    ours = isinstance(error, ValueError) and type(error).__module__.startswith("sublayer.")
    return (ours or isinstance(error, OSError)) and str(error) != ""


def main(arguments: list[str]) -> int:
    """Run and write the record."""
    parser = table.parser("files", __doc__)
    parser.add_argument("--count", type=int, default=12_000, help="files of each kind")
    parser.add_argument("--target", help="one kind")
    given = parser.parse_args(arguments)
    if given.quick:
        given.count = min(given.count, 60)
    began = time.monotonic()
    signal.signal(signal.SIGALRM, _hung)
    lines, details = [], {}
    with tempfile.TemporaryDirectory() as name:
        known = targets(Path(name))
        for target, (file, seed, read) in known.items():
            if given.target in (None, target):
                line, failures = tried(target, file, seed, read, Path(name) / "tried" / target, given)
                lines.append(line)
                details[target] = failures
                print(f"{target}: {line.measured}", flush=True)
    return table.finish("files", given, began, lines, {"failures": details})


def tried(
    target: str, file: str, seed: bytes, read: Read, folder: Path, given: Any
) -> tuple[table.Line, list[dict[str, Any]]]:
    """One kind of file."""
    kinds: collections.Counter[str] = collections.Counter()
    failures: list[dict[str, Any]] = []
    good, slowest = 0, 0.0
    for number in range(given.count):
        rng = random.Random(f"{given.seed}:{target}:{number}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        path = folder / file
        content = fuzz_inputs.spoilt_file(rng, seed, path.suffix if path.suffix != ".lock" else ".json")
        path.write_bytes(content)
        how = fuzz_inputs.strange_file(rng, path) if rng.random() < 0.02 else ""
        before = {} if how else state(folder)
        at = time.perf_counter()
        signal.alarm(HANG)
        try:
            read(path)
            good += 1
        except (Exception, _Hung) as error:
            if not expected(error):
                kinds[type(error).__name__] += 1
                if len(failures) < 20:
                    shown = how or content[:1500].decode("utf-8", "backslashreplace")
                    failures.append({"number": number, "content": shown, "error": traceback.format_exc()[-1500:]})
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - at)
        if not how and state(folder) != before:
            kinds["changed on the disk"] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failed = sum(kinds.values())
    measured = (
        f"{failed} failed {dict(kinds) if kinds else ''}; {good:,} read; slowest {slowest:.2f} s, {peak >> 10} MB"
    )
    return table.Line(
        f"any file as {target} is read, or refused in one message", f"{given.count:,} files: none fails", measured,
        failed == 0 and peak < MOST_KIB,
    ), failures  # fmt: skip
