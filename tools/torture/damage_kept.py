"""Damage in what is kept beside checkpoints: finished runs, tokenised text, studies, a wiring lock.

One byte changed (at random places), cut short, missing, added, for every file that is read again: settings, facts,
records, weights and tokenizer of a finished run; all of an entry of the token cache; plan and results of a study, and
the runs that they are gathered from; a lock. Each must be found by what reads it, and either refused in one message,
or set aside with one and made again as it was. A line of a log, progress and the report's page are read by people
only: a change there cannot be known to matter, and must change nothing else.
"""

import hashlib
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import sublayer as sl
from sublayer.audit.lock import read_lock, write_lock
from sublayer.study import Plan, Study, run_study
from sublayer.study.files import planned
from sublayer.train import TrainSpec, finished, prepare
from torture import runs, table
from torture.damage import KINDS, damage

TIMES, QUICK_TIMES = 25, 1  # places in each file where a byte is changed, lengths to which it is cut
FOR_PEOPLE = ("log.txt", "progress.json", "output.txt")
MARKS = (".lock", ".owner")


@dataclass
class Account:
    """What came of the damage in one kind of folder."""

    tried: Counter[str] = field(default_factory=Counter)
    found: int = 0
    told: int = 0
    whole: int = 0  # made again as it was, or refused
    odd: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str, found: bool, told: bool, whole: bool) -> None:
        """Count one."""
        self.tried[kind] += 1
        self.found += found
        self.told += told
        self.whole += whole
        if not (found and told and whole):
            self.odd.append(f"{what}: found {found}, told {told}, whole after {whole}")

    def line(self, name: str) -> table.Line:
        n = sum(self.tried.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.tried.items())
        return table.Line(
            f"damage in {name} ({kinds})", "all found, told, never used",
            f"found {self.found}, told {self.told}, not used {self.whole} of {n}",
            self.found == self.told == self.whole == n > 0 and not self.odd,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {"tried": dict(self.tried), "found": self.found, "told": self.told, "whole": self.whole,
                "odd": self.odd[:20]}  # fmt: skip


def cases(names: Iterable[str], times: int) -> list[tuple[str, str, int]]:
    """(file, kind, turn) for every file."""
    return [(name, kind, turn) for name in names for kind in KINDS
            for turn in range(times if kind in ("changed", "cut") else 1 if kind == "missing" else 2)]  # fmt: skip


def files(folder: Path, leave_out: Iterable[str] = ()) -> list[str]:
    """Files of a folder, relative to it, but marks and those of some names."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_file() and path.name not in {*MARKS, *leave_out})  # fmt: skip


def tree(folder: Path) -> dict[str, str]:
    """File -> sha256."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files(folder)}


def reported(act: Callable[[], list[Any]], told: Path) -> list[Any]:
    """What `act` gives in a process of its own: what it loads stays there.

    Raises:
        RuntimeError: it did not end well.
    """

    def write() -> int:
        told.write_text(json.dumps(act()), encoding="utf-8")
        return 0

    log = told.with_suffix(".txt")
    code = runs.wait(runs.start(write, log), 900)
    if code != 0:
        raise RuntimeError(f"looking ended with {code}: {log.read_text(encoding='utf-8')[-800:]}")
    return list(json.loads(told.read_text(encoding="utf-8")))


def a_run(top: Path, spec: TrainSpec, whole: Path, times: int, draw: random.Random) -> Account:
    """A finished run. Damage must make it unfinished; resumed, it must set that aside and end with the same weights."""
    account, expected = Account(), runs.weights(whole)
    out = top / "run"
    kept = [name for name in files(whole, FOR_PEOPLE) if not name.startswith("checkpoint-")]
    for name, kind, turn in cases(kept, times):
        if kind == "added" and not name.startswith("model/") and turn:
            continue  # one is enough: the same file, longer
        shutil.copytree(whole, out)
        if kind == "added" and not name.startswith("model/"):  # beside the model nothing is read that is not listed
            (out / name).write_bytes((out / name).read_bytes() + b"\n\x01")
            what = f"bytes added to {name}"
        else:
            what = damage(out / Path(name).parent, Path(name).name, kind, draw)
        found = finished(out) is None
        told = again = True
        if turn == 0:
            code = runs.wait(runs.start(partial(runs.train, spec, out), top / "resume.txt"))
            said = (top / "resume.txt").read_text(encoding="utf-8")
            (top / "resume.txt").unlink()
            # without its last file a run has simply not ended
            told = "set aside as" in said or "is missing" in said or (name == "run.json" and kind == "missing")
            again = code == 0 and runs.weights(out) == expected and finished(out) is not None
        account.add(kind, what, found, told, again)
        shutil.rmtree(out)
    return account


def a_cache(top: Path, spec: TrainSpec, times: int, draw: random.Random) -> Account:
    """An entry of tokenised text: set aside, and made again the same."""
    account = Account()
    (entry,) = [path for path in Path(str(spec.cache)).iterdir() if path.is_dir()]
    before, cache = tree(entry), top / "cache-tried"

    def act() -> list[Any]:
        found = []
        for name, kind, _ in cases(files(entry), times):
            shutil.copytree(entry, cache / entry.name)
            place = (cache / entry.name / name).parent
            what = damage(place, Path(name).name, kind, draw)
            said = looked(lambda: prepare(spec.with_(cache=str(cache))))
            aside = len(list(cache.glob("*.damaged-*"))) == 1
            found.append((kind, what, aside, "is damaged" in said, tree(cache / entry.name) == before))
            shutil.rmtree(cache)
        return found

    for one in reported(act, top / "cache.json"):
        account.add(*one)
    return account


def looked(act: Callable[[], object]) -> str:
    """What is logged while something is done, and the message if it is refused."""
    import io
    import logging

    said, log = io.StringIO(), logging.getLogger("sublayer")
    handler = logging.StreamHandler(said)
    log.addHandler(handler)
    try:
        act()
    except ValueError as error:
        if not type(error).__module__.startswith("sublayer."):
            raise
        said.write(f"refused: {error}")
    finally:
        log.removeHandler(handler)
    return said.getvalue()


def a_lock(top: Path, times: int, draw: random.Random) -> Account:
    """A wiring lock: refused."""
    account, place = Account(), top / "lock"
    place.mkdir()

    def act() -> list[Any]:
        config = sl.SublayerConfig(design="paf", vocab_size=40, hidden_size=16, num_hidden_layers=2,
                                   num_attention_heads=2, intermediate_size=32)  # fmt: skip
        write_lock(sl.audit(sl.SublayerModel(config)), place / "wiring.lock")
        content, found = (place / "wiring.lock").read_bytes(), []
        for _, kind, _ in cases(["wiring.lock"], 40 * times):
            (place / "wiring.lock").write_bytes(content)
            if kind == "added":
                (place / "wiring.lock").write_bytes(content + draw.randbytes(draw.randrange(1, 64)))
                what = "bytes added"
            else:
                what = damage(place, "wiring.lock", kind, draw)
            try:
                said = looked(lambda: read_lock(place / "wiring.lock"))
            except FileNotFoundError:
                said = "refused: missing" if kind == "missing" else ""
            refused = said.startswith("refused: ")
            found.append((kind, what, refused, refused, refused))
        return found

    for one in reported(act, top / "lock.json"):
        account.add(*one)
    return account


def a_study(top: Path, plan: Plan, whole: Path, times: int, draw: random.Random) -> Account:
    """Plan, results and settings of a study: refused where they are only read, set aside or written again where the
    study goes on, which must then have the same runs."""
    account, out = Account(), top / "study-tried"
    expected = hashes(whole)

    def act() -> list[Any]:
        found = []
        for name, kind, turn in cases(("plan.json", "results.json"), 4 * times):
            if kind == "added" and turn:
                continue
            shutil.copytree(whole, out)
            if kind == "added":
                (out / name).write_bytes((out / name).read_bytes() + b"\x01")
                what = f"bytes added to {name}"
            else:
                what = damage(out, name, kind, draw)
            reads = partial(Study.load, out) if name == "results.json" else partial(planned, out)
            said = looked(reads)
            refused = said.startswith("refused: ")
            again = True
            if turn == 0:
                more = looked(lambda: run_study(plan, out, jobs=1, measure=False, resume=True, output=None))
                again = not more.startswith("refused") and hashes(out) == expected and looked(reads) == ""
                again = again and (name != "plan.json" or kind == "missing" or "set aside as" in more)
            found.append((kind, what, refused, refused, again))
            shutil.rmtree(out)
        return found

    for one in reported(act, top / "study.json"):
        account.add(*one)
    return account


def a_study_of_damaged_runs(top: Path, plan: Plan, whole: Path, draw: random.Random) -> Account:
    """A file of a run of a study: the study runs that run again and no other."""
    account, out = Account(), top / "runs-tried"
    expected = hashes(whole)
    first, other = (f"runs/{run.id}" for run in plan.runs())

    def act() -> list[Any]:
        found = []
        for name in ("run.json", "metrics.jsonl", "model/model.safetensors", "model/config.json"):
            for kind in KINDS[:3]:
                shutil.copytree(whole, out)
                what = damage((out / first / name).parent, Path(name).name, kind, draw)
                untouched = (out / other / "run.json").stat().st_mtime_ns
                said = looked(lambda: run_study(plan, out, jobs=1, measure=False, resume=True, output=None))
                said += (out / first / "output.txt").read_text(encoding="utf-8")
                told = "set aside as" in said or "is missing" in said or (name == "run.json" and kind == "missing")
                same = hashes(out) == expected and (out / other / "run.json").stat().st_mtime_ns == untouched
                again = (out / first / "run.json").stat().st_mtime_ns != (whole / first / "run.json").stat().st_mtime_ns
                found.append((kind, what, again, told, same))
                shutil.rmtree(out)
        return found

    for one in reported(act, top / "runs.json"):
        account.add(*one)
    return account


def hashes(study: Path) -> dict[str, Any]:
    """Run -> the hash of its weights, by its own file."""
    return {path.parent.name: (finished(path.parent) or {}).get("weights_sha256")
            for path in sorted(study.glob("runs/*/run.json"))}  # fmt: skip


def for_people(top: Path, whole: Path, draw: random.Random) -> tuple[int, int]:
    """Logs and progress of a finished run: a change there makes nothing else unfinished. (tried, unharmed)"""
    tried = unharmed = 0
    for name in FOR_PEOPLE:
        for kind in KINDS[:3] if (whole / name).is_file() and (whole / name).stat().st_size else ():
            shutil.copytree(whole, top / "people")
            damage(top / "people", name, kind, draw)
            tried += 1
            unharmed += finished(top / "people") is not None
            shutil.rmtree(top / "people")
    return tried, unharmed


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("damage_kept", __doc__).parse_args(arguments)
    began, draw = time.monotonic(), random.Random(given.seed)
    times = QUICK_TIMES if given.quick else TIMES
    accounts: dict[str, Account] = {}
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        spec = runs.tiny(top, steps=4, save_steps=2)
        whole = top / "whole"
        runs.whole(spec, whole)
        people = for_people(top, whole, draw)
        accounts["a finished run"] = a_run(top, spec, whole, times, draw)
        accounts["an entry of the token cache"] = a_cache(top, spec, times, draw)
        accounts["a wiring lock"] = a_lock(top, times, draw)
        base = {key: value for key, value in spec.to_dict().items() if key not in ("design", "seed", "lr", "steps")}
        plan = Plan.make(["post-norm", "paf"], seeds=(0,), lrs=(1e-2,), size="tiny", steps=4, **base)
        study = top / "study"
        reported(lambda: [run_study(plan, study, jobs=1, measure=False, output=None).verdict], top / "made.json")
        accounts["plan and results of a study"] = a_study(top, plan, study, times, draw)
        if not given.quick:
            accounts["a run of a study"] = a_study_of_damaged_runs(top, plan, study, draw)
        for name, account in accounts.items():
            print(f"{name}: {account.to_dict()}", flush=True)
    lines = [account.line(name) for name, account in accounts.items()]
    lines.append(table.Line("logs and progress, read by people only, changed", "nothing else is harmed",
                            f"{people[1]} of {people[0]}", people[0] == people[1] > 0))  # fmt: skip
    return table.finish("damage_kept", given, began, lines, {n: a.to_dict() for n, a in accounts.items()})
