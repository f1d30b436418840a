"""Fuzzing the files that a user may give: each is read, or refused in one message, and nothing on the disk changes.

Settings of studies, studies of parts, recipes, settings of a run, locks of an audit, text as .txt, .jsonl and .parquet;
folders of tasks and of GLUE, configs, checkpoints (config, weights, shards and their index) and tokenizers. A file
counts as failed when reading it raises what the command line would show as a traceback, takes more than a minute,
changes a file, or when the process holds more than 2 GB. One in `--commands 100` of those that are refused also goes
through the command line, in a process of its own, which has to end with status 2 and one message. Contents are a
function of the seed and their number. Only reading is tried: nothing is trained on them.
"""

import collections
import hashlib
import random
import resource
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
from sublayer.study import Plan, Program, read_config
from sublayer.train import TrainSpec
from sublayer.train.documents import open_source
from torture import commands, fuzz_folders, fuzz_inputs, table
from torture.fuzz_folders import Target

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


def _lock(folder: Path, at: Path) -> bytes:
    config = sl.SublayerConfig(
        design="paf", vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.architectures = ["SublayerModel"]
    config.to_json_file(at)
    model: nn.Module = sl.SublayerModel(config)
    write_lock(sl.audit(model), folder / "lock")
    return (folder / "lock").read_bytes()


def _parquet(folder: Path) -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = {"text": [f"text {i} of a few words" for i in range(20)], "number": list(range(20))}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "seed.parquet")
    return (folder / "seed.parquet").read_bytes()


def targets(folder: Path) -> dict[str, Target]:
    """Name -> kind of input, of one file or of a folder."""
    spec = TrainSpec(design="paf", steps=4)
    study = {"designs": ["post-norm", {"design": "deepnorm", "init": "deepnorm"}], "seeds": [0, 1], "lrs": [0.001],
             "size": "tiny", "steps": 20, "objective": "mlm", "betas": [0.9, 0.98]}  # fmt: skip
    published = tuple(path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml")))
    lines = "".join(f'{{"text": "document {i}", "id": {i}}}\n' for i in range(20))
    config = folder / "config.json"
    lock = _lock(folder, config)

    def compared(at: Path, out: Path) -> list[str]:
        return ["compare", "--config", str(at / "study.yaml"), "--out", str(out / "o")]

    def probed(name: str) -> Callable[[Path, Path], list[str]]:
        return lambda at, out: ["probe", str(folder / "bert"), "--data", str(at / name), "--tokens", "64"]

    def one(name: str, good: tuple[bytes, ...], read: Read, command: Any = None, **more: Any) -> Target:
        return Target(tuple({name: each} for each in good), (name,), lambda at: read(at / name), command, **more)

    parts = tuple(path.read_bytes() for path in sorted((ROOT / "studies").glob("*/study.yaml")))
    return {
        "study": one("study.yaml", (yaml.safe_dump(study).encode(),), _plan, compared),
        "parts": one("study.yaml", parts, Program.load, compared),
        "recipe": one("recipe.yaml", published, recipes.load,
                      lambda at, out: ["train", "--recipe", str(at / "recipe.yaml"), "--dry-run"]),
        "run": one("spec.json", (fuzz_inputs.as_json(spec.to_dict()),), TrainSpec.load),
        "lock": one("wiring.lock", (lock,), read_lock,
                    lambda at, out: ["audit", str(config), "--check", str(at / "wiring.lock")],
                    spoil=fuzz_folders.spoilt_lock),
        "text": one("text.txt", (b"One line.<|endoftext|>Another document, of two\nlines.\n" * 9,), _text,
                    probed("text.txt")),
        "jsonl": one("text.jsonl", (lines.encode(),), _text, probed("text.jsonl")),
        "parquet": one("text.parquet", (_parquet(folder),), _text, probed("text.parquet")),
        **fuzz_folders.targets(folder),
    }  # fmt: skip


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
    parser.add_argument("--count", type=int, default=12_000, help="files of each kind; a part of it of slow kinds")
    parser.add_argument("--target", help="one kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--commands", type=int, default=100, help="one in so many also through the command line")
    given = parser.parse_args(arguments)
    if given.quick:
        given.count = min(given.count, 60)
        given.commands = min(given.commands, 30)
    began = time.monotonic()
    signal.signal(signal.SIGALRM, _hung)
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))  # what asks for more is found, and stops nothing else
    lines, details = [], {}
    with tempfile.TemporaryDirectory() as name:
        for kind, target in targets(Path(name)).items():
            if given.target in (None, kind):
                trial = _Trial(kind, target, Path(name) / "tried", given)
                lines.append(trial.run())
                details[kind] = trial.failures
                print(f"{kind}: {lines[-1].measured}", flush=True)
                if given.out is not None:
                    table.write(given.out, table.record("files", given, began, lines, {"failures": details}))
    return table.finish("files", given, began, lines, {"failures": details})


class _Trial:
    """One kind of input."""

    def __init__(self, kind: str, target: Target, folder: Path, given: Any) -> None:
        self.kind, self.target, self.folder, self.given = kind, target, folder, given
        self.count = max(1, int(given.count * target.share))
        self.wrong: collections.Counter[str] = collections.Counter()
        self.failures: list[dict[str, Any]] = []
        self.good, self.refused, self.commands, self.slowest = 0, 0, 0, 0.0

    def run(self) -> table.Line:
        """All its files."""
        for number in range(self.given.first, self.given.first + self.count):
            self._one(number)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        failed = sum(self.wrong.values())
        through = f", {self.commands} of them by the command line" if self.target.command else ""
        measured = (
            f"{failed} failed{f' {dict(self.wrong)}' if failed else ''}; {self.good:,} read, {self.refused:,} refused"
            f"{through}; slowest {self.slowest:.2f} s, {peak >> 10} MB"
        )
        return table.Line(
            f"any file of a {self.kind} is read, or refused in one message", f"{self.count:,} files: none fails",
            measured, failed == 0 and peak < MOST_KIB,
        )  # fmt: skip

    def _one(self, number: int) -> None:
        rng = random.Random(f"{self.given.seed}:{self.kind}:{number}")
        files = dict(rng.choice(self.target.good))
        name = rng.choice([name for name in self.target.spoilt if name in files])
        if self.target.spoil is None:
            files[name] = fuzz_inputs.spoilt_file(rng, files[name], Path(name).suffix)
        else:
            files[name] = self.target.spoil(rng, name, files[name])
        fuzz_folders.put(files, self.folder)
        how = fuzz_inputs.strange_file(rng, self.folder / name) if rng.random() < 0.02 else ""
        shown = f"{name}: {how or files[name][:1500].decode('utf-8', 'backslashreplace')}"
        before = {} if how else state(self.folder)
        at = time.perf_counter()
        signal.alarm(HANG)
        try:
            self.target.read(self.folder)
            self.good += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also what tokenizers' Rust code panics with
            if expected(error):
                self.refused += 1
                signal.alarm(0)
                if self.refused % self.given.commands == 1:
                    self._command(number, shown)
            else:
                self._failed(type(error).__name__, number, shown, traceback.format_exc())
        finally:
            signal.alarm(0)
        self.slowest = max(self.slowest, time.perf_counter() - at)
        if not how and state(self.folder) != before:
            self._failed("changed on the disk", number, shown, "")

    def _command(self, number: int, shown: str) -> None:
        if self.target.command is None:
            return
        self.commands += 1
        with tempfile.TemporaryDirectory() as out:
            status, text = commands.run(self.target.command(self.folder, Path(out)), Path(out) / "text", HANG)
        if status != 2 or "Traceback" in text or not text.strip():
            self._failed("command line", number, shown, f"status {status}: {text[-1200:]}")

    def _failed(self, kind: str, number: int, shown: str, text: str) -> None:
        self.wrong[kind] += 1
        if len(self.failures) < 40:
            self.failures.append({"number": number, "kind": kind, "content": shown, "error": text[-1500:]})
