"""Several processes at once in one folder, some killed: one works, others wait or refuse, and nothing is mixed.

Each round starts two to four processes at the same moment on one target: a study (its runs by index, and gathering), a
run, a folder of tokenised data (in some rounds a damaged one), an exported checkpoint, whole studies by `run_study`.
Some are killed with -9 at a random time. A process that was not killed must end with status 0, or 2 and a message of
one line. Then one process does the work alone, and what is there must be, hash for hash, what a process makes that was
always alone.
"""

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sublayer import report
from sublayer.study import Plan, gather_study, run_one, run_study
from sublayer.train import TrainSpec
from sublayer.train.cache import prepare
from torture import runs, table

ROUNDS = {"a run": 60, "a study by index": 40, "tokenised data": 150, "an exported folder": 150, "whole studies": 6}
QUICK = {"a run": 2, "a study by index": 1, "tokenised data": 4, "an exported folder": 6, "whole studies": 0}
SEEDS = (0, 1)
Action = Callable[[], object]  # what a process does; a number is its exit status


@dataclass
class Tally:
    """What came of the rounds of one kind."""

    name: str
    rounds: int = 0
    same: int = 0
    processes: int = 0
    killed: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.name, "rounds": self.rounds, "same": self.same, "processes": self.processes,
                "killed": self.killed, "ended": dict(self.ended), "odd": self.odd[:20]}  # fmt: skip


def refusing(action: Action) -> Callable[[], int]:
    """As the command line: an error of ours, or of the system, is one line and status 2."""

    def act() -> int:
        try:
            found = action()
            return found if isinstance(found, int) else 0
        except ValueError as error:
            if not type(error).__module__.startswith("sublayer."):
                raise
            print(f"sublayer: {error}", file=sys.stderr)
        except OSError as error:
            print(f"sublayer: {error.strerror or error}: {error.filename}", file=sys.stderr)
        return 2

    return act


def at_once(
    tally: Tally,
    draw: random.Random,
    actions: Sequence[Action],
    kills: int,
    length: float,
    log: Path,
    works: bool,
) -> None:
    """Start all, kill some at random times, and note how the others ended."""
    gate, opened = os.pipe()

    def held(action: Callable[[], int]) -> Callable[[], int]:
        def act() -> int:
            os.close(opened)
            os.read(gate, 1)  # until the other end is closed: all begin at the same moment
            return action()

        return act

    logs = [log.with_name(f"{log.name}-{i}.txt") for i in range(len(actions))]
    for path in logs:
        path.unlink(missing_ok=True)
    pids = [runs.start(held(refusing(action)), path) for action, path in zip(actions, logs, strict=True)]
    os.close(gate)
    os.close(opened)
    due = {pid: time.monotonic() + draw.uniform(0.0, length) for pid in draw.sample(pids, kills)}
    until, waiting = time.monotonic() + runs.LIMIT, dict(zip(pids, logs, strict=True))
    tally.processes += len(pids)
    ended = Counter[str]()
    while waiting:
        for pid, path in list(waiting.items()):
            if time.monotonic() > due.get(pid, until):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del waiting[pid]
                code = os.waitstatus_to_exitcode(status)
                tally.killed += code == -signal.SIGKILL
                said = path.read_text(encoding="utf-8", errors="replace")
                fine = code == 0 or (code == -signal.SIGKILL and pid in due) or (code == 2 and "Traceback" not in said)
                word = {0: "worked", 2: "refused", -9: "killed"}.get(code, f"status {code}")
                ended[word] += 1
                if not fine:
                    tally.odd.append(f"{word}: {said[-600:]}")
        time.sleep(0.001)
    tally.ended += ended
    if works and not ended["worked"] and not ended["killed"]:
        tally.odd.append("no process worked, though none was killed")


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, but not of marks of processes."""
    marks = (".lock", ".owner")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(marks))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def alone(action: Action, log: Path) -> None:
    """One process by itself, which must end well. Raises RuntimeError if it does not."""
    code = runs.wait(runs.start(refusing(action), log))
    if code != 0:
        raise RuntimeError(f"a process by itself ended with {code}: {log.read_text(encoding='utf-8')[-2000:]}")


class Kind:
    """A target, what processes do to it, and what it holds in the end."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        self.works = True  # whether one process at least must work, unless some are killed
        folder.mkdir(parents=True)
        runs.write_texts(folder / "texts")

    def actions(self, target: Path) -> list[Action]:
        """What the processes of a round do."""
        raise NotImplementedError

    def finish(self, target: Path) -> None:
        """Do the work alone, from what the round has left."""
        raise NotImplementedError

    def result(self, target: Path) -> Any:
        """What must be the same in the end."""
        raise NotImplementedError

    def allowed(self, expected: Any) -> list[Any]:
        """What may be there in the end."""
        return [expected]

    def prepared(self, target: Path) -> None:
        """What is there before a round."""


class ARun(Kind):
    """The same run in the same folder."""

    def spec(self) -> TrainSpec:
        return runs.tiny(self.folder, steps=24)

    def actions(self, target: Path) -> list[Action]:
        spec, count = self.spec(), self.draw.randint(2, 4)
        return [lambda: runs.train(spec, target)] * count

    def finish(self, target: Path) -> None:
        alone(lambda: runs.train(self.spec(), target), self.folder / "alone.txt")

    def result(self, target: Path) -> Any:
        row = json.loads((target / "run.json").read_text(encoding="utf-8"))
        return row["weights_sha256"], row["eval_loss"], row["data_order_sha256"], tree(target / "model")


class Indexed(Kind):
    """Runs of one study by their index, more processes than runs, while others gather."""

    def plan(self) -> Plan:
        spec = runs.tiny(self.folder, steps=16)
        names = {one.name for one in fields(TrainSpec)} - {"design", "seed", "lr", "tokens"}
        return Plan.make(["post-norm"], seeds=SEEDS, lrs=(1e-2,), **{name: getattr(spec, name) for name in names})

    def prepared(self, target: Path) -> None:
        run_study(self.plan(), target, output=None, executor=lambda *_, **__: None)

    def actions(self, target: Path) -> list[Action]:
        def one(index: int) -> Callable[[], int]:
            return lambda: run_one(target, index, measure=False)

        def gather() -> None:
            gather_study(target, report=report.write)

        choices: list[list[Action]] = [[one(self.draw.randrange(2))], [gather], [one(0), gather], [gather, gather]]
        more = self.draw.choice(choices)
        return [one(0), one(1), *more]

    def finish(self, target: Path) -> None:
        for index in range(len(SEEDS)):
            alone(functools.partial(run_one, target, index, measure=False), self.folder / "alone.txt")
        alone(lambda: gather_study(target, report=report.write), self.folder / "alone.txt")

    def result(self, target: Path) -> Any:
        rows = json.loads((target / "results.json").read_text(encoding="utf-8"))["runs"]
        page = (target / "report.html").stat().st_size > 10_000
        found = [(row["id"], row["status"], row["eval_loss"], row["weights_sha256"]) for row in rows]
        return found, page


class Whole(Indexed):
    """Studies by `run_study`, each with its own processes: one works, the others are refused."""

    def prepared(self, target: Path) -> None:
        pass

    def actions(self, target: Path) -> list[Action]:
        def study(resume: bool) -> Action:
            return lambda: run_study(self.plan(), target, jobs=1, measure=False, resume=resume, output=None)

        return [study(self.draw.random() < 0.5) for _ in range(self.draw.randint(2, 3))]

    def finish(self, target: Path) -> None:
        given: dict[str, Any] = {"jobs": 1, "measure": False, "resume": True, "output": None, "report": report.write}
        # runs of a study that was killed save before they let go
        os.environ["SUBLAYER_WAIT"] = "60"
        alone(lambda: run_study(self.plan(), target, **given), self.folder / "alone.txt")
        del os.environ["SUBLAYER_WAIT"]


class Cache(Kind):
    """The same tokenised data, in half of the rounds from an entry that is damaged."""

    def actions(self, target: Path) -> list[Action]:
        spec = runs.tiny(self.folder, cache=str(target))
        return [lambda: prepare(spec) for _ in range(self.draw.randint(2, 4))]

    def prepared(self, target: Path) -> None:
        if self.draw.random() < 0.5:
            shutil.copytree(self.folder / "whole", target)
            (entry,) = target.iterdir()
            path = self.draw.choice(sorted(p for p in entry.rglob("*") if p.is_file()))
            held = bytearray(path.read_bytes())
            held[self.draw.randrange(len(held))] ^= 1
            path.write_bytes(bytes(held))

    def finish(self, target: Path) -> None:
        spec = runs.tiny(self.folder, cache=str(target))
        alone(lambda: prepare(spec), self.folder / "alone.txt")

    def result(self, target: Path) -> Any:
        (entry,) = [path for path in target.iterdir() if "." not in path.name]
        return tree(entry)


class Export(Kind):
    """Two models to one folder, with `overwrite` or without: in the end it is one of them, whole."""

    def models(self) -> list[Any]:
        from sublayer.model import SublayerConfig, SublayerForCausalLM

        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        configs = [SublayerConfig(design=name, vocab_size=300, **sizes) for name in ("paf", "post-norm")]
        return [SublayerForCausalLM(config) for config in configs]

    def write(self, target: Path, which: int, overwrite: bool) -> Action:
        from sublayer.hf import export

        return lambda: export(self.models()[which], target, overwrite=overwrite)

    def actions(self, target: Path) -> list[Action]:
        over = self.draw.random() < 0.5
        self.works = over or not self.before
        return [self.write(target, self.draw.randrange(2), over) for _ in range(self.draw.randint(2, 4))]

    def prepared(self, target: Path) -> None:
        self.before = self.draw.random() < 0.3
        if self.before:
            alone(self.write(target, 0, False), self.folder / "alone.txt")

    def finish(self, target: Path) -> None:
        if not target.exists():
            alone(self.write(target, 0, False), self.folder / "alone.txt")

    def result(self, target: Path) -> Any:
        return tree(target)

    def allowed(self, expected: Any) -> list[Any]:
        other = self.folder / "other"
        if not other.exists():
            alone(self.write(other, 1, False), self.folder / "alone.txt")
        return [expected, tree(other)]


KINDS: dict[str, type[Kind]] = {
    "a run": ARun, "a study by index": Indexed, "tokenised data": Cache, "an exported folder": Export,
    "whole studies": Whole,
}  # fmt: skip


def torment(name: str, rounds: int, top: Path, draw: random.Random) -> Tally:
    """The rounds of one kind."""
    tally = Tally(name)
    kind = KINDS[name](top / name.replace(" ", "-"), draw)
    whole = kind.folder / "whole"
    if not isinstance(kind, Cache | Export):
        kind.prepared(whole)
    began = time.monotonic()
    kind.finish(whole)
    length = time.monotonic() - began
    allowed = kind.allowed(kind.result(whole))
    for number in range(rounds):
        target = kind.folder / f"round-{number}"
        kind.prepared(target)
        actions = kind.actions(target)
        at_once(tally, draw, actions, draw.randint(0, len(actions) - 1), length, kind.folder / "log", kind.works)
        try:
            kind.finish(target)
            same = kind.result(target) in allowed
            tally.odd += [] if same else [f"{target.name}: other content"]
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            same = False
            tally.odd.append(f"{target.name}: {type(error).__name__}: {error}")
        tally.rounds += 1
        tally.same += same
        shutil.rmtree(target, ignore_errors=True)
    return tally


def main(arguments: list[str] | None = None) -> int:
    parser = table.parser("together", __doc__)
    parser.add_argument("--only", choices=sorted(KINDS), help="one kind of target")
    given = parser.parse_args(arguments)
    began, draw = time.monotonic(), random.Random(given.seed)
    lines, tallies = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for name, rounds in (QUICK if given.quick else ROUNDS).items():
            if not rounds or given.only not in (None, name):
                continue
            tally = torment(name, rounds, Path(temporary), draw)
            tallies.append(tally)
            print(f"{name}: {tally.to_dict()}", flush=True)
            ended = ", ".join(f"{count} {word}" for word, count in sorted(tally.ended.items()))
            lines.append(
                table.Line(
                    f"2 to 4 processes at once on {name}, some killed (-9)",
                    "one works, others wait or refuse; in the end as one process alone, hash for hash",
                    f"{tally.same} of {tally.rounds} rounds the same; {tally.processes} processes: {ended}",
                    tally.same == tally.rounds and not tally.odd,
                )
            )
    return table.finish("together", given, began, lines, {"kinds": [tally.to_dict() for tally in tallies]})
