"""kill -9 of one of two processes that train together, at random times: resumed, the weights are those of no kill.

Dropout 0.1. Most pairs of processes are forked from this one and told who they are in the environment; some are
started by `torchrun` as a shell starts it, whose workers are its children. Last, `torchrun --max-restarts` starts the
pair anew by itself, with `--resume` on the command line.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import sublayer
from sublayer.train import TrainSpec, finished
from torture import runs, table, team
from torture.kill import left
from torture.stop import options

KILLS, QUICK = 20, 2
BY_TORCHRUN, RESTARTS = 3, 2  # further kills in the long form, of pairs started by torchrun


def forked(spec: TrainSpec, wanted: int, top: Path, draw: random.Random) -> dict[str, Any]:
    """Kill one of a forked pair `wanted` times; each run goes to its end after every kill, and is compared."""
    began = time.monotonic()
    codes = team.train(2, spec, top / "whole")
    if codes != [0, 0]:
        raise RuntimeError(f"an undisturbed pair ended with {codes}; see {top / 'whole.txt.0'}")
    length, expected = time.monotonic() - began, runs.weights(top / "whole")
    kills = identical = ends = 0
    found: Counter[str] = Counter()
    whom: Counter[int] = Counter()
    others: Counter[str] = Counter()  # exit status of the one that was not killed
    odd: list[str] = []
    while kills < wanted:
        out = top / f"run-{ends}"
        members = team.start(2, partial(runs.train, spec, out), out.with_suffix(".txt"))
        rank, until = draw.randrange(2), time.monotonic() + draw.uniform(0.02, length)
        while time.monotonic() < until and not members.look():
            time.sleep(0.001)
        if members.pids[rank] not in members.codes:
            os.kill(members.pids[rank], signal.SIGKILL)
        codes = members.wait()
        if codes[rank] == -signal.SIGKILL:
            kills += 1
            whom[rank] += 1
            others[str(codes[1 - rank])] += 1
            found[left(out)] += 1
            if codes[1 - rank] is None:
                odd.append(f"kill {kills}: the other process hung")
            codes = team.train(2, spec, out)
        ends += 1
        same = codes == [0, 0] and finished(out) is not None and runs.weights(out) == expected
        identical += same
        if not same:
            odd.append(f"{out.name} ended with {codes}, or with other weights")
        shutil.rmtree(out, ignore_errors=True)
    return {"kills": kills, "ends": ends, "identical": identical, "left_by_kills": dict(found), "odd": odd,
            "killed": {f"process {rank}": count for rank, count in sorted(whom.items())},
            "the_other_ended_with": dict(others)}  # fmt: skip


def torchrun(spec: TrainSpec, out: Path, *more: str) -> "subprocess.Popen[bytes]":
    """The pair as a shell starts it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(sublayer.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
            str(team.free_port()), *more, "-m", "sublayer", "train", spec.design, "--out", str(out), "--resume",
            *options(spec)]  # fmt: skip
    with open(out.with_suffix(".txt"), "ab") as log:
        return subprocess.Popen(line, stdout=log, stderr=log, env=environment)


def kill_a_worker(process: "subprocess.Popen[bytes]", out: Path, draw: random.Random) -> bool:
    """Kill one of torchrun's workers when the run has made a checkpoint or two; False: it ended before."""
    wanted = draw.randrange(1, 4)
    while process.poll() is None:
        if len(list(out.glob("checkpoint-*/manifest.json"))) >= wanted:
            time.sleep(draw.uniform(0, 0.2))
            workers = [one for one in psutil.Process(process.pid).children() if "sublayer" in one.cmdline()]
            if len(workers) == 2:
                draw.choice(workers).kill()
                return True
            return False
        time.sleep(0.02)
    return False


def hashed(out: Path) -> str | None:
    """Hash of the weights of a run that has ended; the command line puts them into the run's folder itself."""
    row = finished(out)
    return None if row is None else str(row["weights_sha256"])


def by_torchrun(spec: TrainSpec, top: Path, draw: random.Random, kills: int, restarts: bool) -> dict[str, Any]:
    """Kill workers of torchrun; then a person starts it again, or (`restarts`) it does so by itself."""
    whole = top / "torchrun-whole"
    if torchrun(spec, whole).wait(300) != 0:
        raise RuntimeError(f"an undisturbed pair failed; see {whole.with_suffix('.txt')}")
    expected = hashed(whole)
    made = identical = 0
    odd: list[str] = []
    for number in range(kills):
        out = top / f"torchrun-{number}"
        process = torchrun(spec, out, *(["--max-restarts", "2"] if restarts else []))
        killed = kill_a_worker(process, out, draw)
        code = process.wait(300)
        made += killed
        if not restarts:
            if killed and code == 0:
                odd.append(f"{out.name}: a worker was killed, and torchrun ended with 0")
            code = torchrun(spec, out).wait(300)
        same = killed and code == 0 and hashed(out) == expected
        identical += same
        if not same:
            said = out.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")[-1500:]
            odd.append(f"{out.name}: killed {killed}, ended with {code}, or with other weights; {said}")
    shutil.rmtree(whole)
    return {"kills": made, "identical": identical, "ends": kills, "odd": odd}


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("ddp", __doc__).parse_args(arguments)
    began, draw = time.monotonic(), random.Random(given.seed)
    wanted = QUICK if given.quick else KILLS
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        spec = runs.tiny(top, accumulation=2, steps=12 if given.quick else 40)
        one = forked(spec, wanted, top, draw)
        print(f"forked: {one}", flush=True)
        found = {"forked": one}
        lines = [table.Line(
            "kill -9 of one of two DDP processes at a random time, dropout 0.1",
            f"{wanted} kills, final weights identical every time",
            f"{one['kills']} kills, {one['identical']} of {one['ends']} runs identical",
            one["kills"] == wanted and one["identical"] == one["ends"] > 0 and not one["odd"],
        )]  # fmt: skip
        if not given.quick:
            longer = spec.with_(steps=60, accumulation=1)
            for name, kills, restarts in (("a person starts it again", BY_TORCHRUN, False),
                                          ("--max-restarts starts it again", RESTARTS, True)):  # fmt: skip
                folder = top / name.replace(" ", "-")
                folder.mkdir()
                found[name] = one = by_torchrun(longer, folder, draw, kills, restarts)
                print(f"{name}: {one}", flush=True)
                lines.append(table.Line(
                    f"kill -9 of a worker of torchrun; {name}", f"{kills} kills, final weights identical",
                    f"{one['kills']} kills, {one['identical']} of {one['ends']} runs identical",
                    one["kills"] == one["identical"] == kills and not one["odd"],
                ))  # fmt: skip
    return table.finish("ddp", given, began, lines, found)
