"""Studies on several machines: an array job that loses machines, a Ray cluster that loses a worker, are as one machine.

SLURM is a double of its commands (`slurm_double`), the scripts are those that `--executor slurm --submit` writes. Ray
is real (`pip install 'sublayer[ray]'`; left out without it): a cluster of a head without CPUs and two workers on this
machine, one of which is killed with its runs while they train. What must be the same is each run's held-out loss and
sha256 of the weights, against `--executor local`.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from torture import runs, slurm_double, table

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "--objective": "mlm", "--layers": 2, "--hidden": 16, "--heads": 2, "--ffn": 32, "--seq": 16, "--batch": 2,
    "--vocab-size": 300, "--threads": 1, "--device": "cpu", "--save-steps": 5, "--lr": 0.01, "--dropout": 0.1,
    "--data": "texts", "--cache": "cache",
}  # fmt: skip
LIMIT = 500.0  # seconds that a study may take
TRIALS = ("slurm", "machine", "worker", "sigint", "sigterm")
QUICK = ("slurm", "machine")


class Place:
    """A folder with texts, in which studies of the same runs are carried out."""

    def __init__(self, folder: Path, seeds: Sequence[int], steps: int) -> None:
        self.folder = folder
        runs.write_texts(folder / "texts")
        self.words = ["post-norm", "paf", "--seeds", ",".join(map(str, seeds)), "--steps", str(steps), "--no-measure"]
        self.words += [str(part) for pair in SETTINGS.items() for part in pair]
        self.count = 2 * len(seeds)

    def start(self, *more: str, **environment: str) -> "subprocess.Popen[bytes]":
        """`sublayer compare` with the study's settings, its output in `said.txt`."""
        given = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"} | environment
        with open(self.folder / "said.txt", "ab") as log:
            line = [sys.executable, "-m", "sublayer", "compare", *self.words, *more]
            return subprocess.Popen(line, cwd=self.folder, env=given, stdout=log, stderr=log, start_new_session=True)

    def run(self, *more: str, **environment: str) -> None:
        """The same, to its end. Raises RuntimeError if it ends badly."""
        process = self.start(*more, **environment)
        self.ended(process, 0)

    def ended(self, process: "subprocess.Popen[bytes]", code: int) -> None:
        """Wait for a study that must end with a status. Raises RuntimeError if it ends otherwise."""
        try:
            found = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            found = -1
        if found != code:
            said = (self.folder / "said.txt").read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"a study ended with {found} and not with {code}: {said}")

    def results(self, name: str) -> dict[str, tuple[Any, ...]]:
        """Of each run its state, held-out loss and hash of the weights."""
        rows = json.loads((self.folder / name / "results.json").read_text(encoding="utf-8"))["runs"]
        return {row["id"]: (row["status"], row["eval_loss"], row.get("weights_sha256")) for row in rows}

    def resumed(self, name: str) -> int:
        """How often a run of a study went on from a checkpoint."""
        logs = (self.folder / name / "runs").glob("*/log.txt")
        return sum(log.read_text(encoding="utf-8").count("resuming from step") for log in logs)

    def identical(self, name: str) -> int:
        """How many runs of a study ended as those of one machine."""
        mine, theirs = self.results(name), self.results("local")
        return sum(mine[key] == theirs[key] and mine[key][0] == "ok" for key in theirs)

    def line(self, promise: str, asked: str, name: str, more: str = "", holds: bool = True) -> table.Line:
        """What came of a study."""
        same = self.identical(name)
        measured = f"{same} of {self.count} runs identical, {self.resumed(name)} times resumed{more}"
        return table.Line(promise, asked, measured, same == self.count and holds)


# -- SLURM -----------------------------------------------------------------------------------------------------------


def array_job(at: Place) -> table.Line:
    """An array job, two tasks at once: a machine lost, a time limit met, and both for one run."""
    name = "array"
    patterns = {run: str(at.folder / name / "runs" / run) for run in at.results("local")}
    trouble: dict[str, list[list[str]]] = {}
    for index, folder in enumerate(patterns.values()):
        early, late = f"{folder}/checkpoint-*/manifest.json", f"{folder}/checkpoint-[2-9]?"
        trouble[str(index)] = [[["node", early]], [["limit", early]], [["node", early], ["limit", late]]][index % 3]
    double = at.folder / "slurm"
    slurm_double.install(double / "bin")
    (double / "trouble.json").write_text(json.dumps(trouble), encoding="utf-8")
    path = f"{double / 'bin'}{os.pathsep}{os.environ['PATH']}"
    at.run("--out", name, "--executor", "slurm", "--submit", "--jobs", "2", PATH=path, SLURM_DOUBLE=str(double))
    happened: list[str] = []
    until = time.monotonic() + LIMIT
    while not any(line.startswith("ended gather.sh") for line in happened) and time.monotonic() < until:
        time.sleep(0.2)
        happened = (double / "happened.txt").read_text(encoding="utf-8").splitlines()
    lost, limits = (sum(line.startswith(kind) for line in happened) for kind in ("node", "limit"))
    wanted = sum(len(kinds) for kinds in trouble.values())
    return at.line(
        "array job of SLURM (commands doubled): machines lost by kill -9, time limits met",
        "runs queued again and resumed, results those of one machine",
        name, f"; {lost} machines lost, {limits} time limits", lost + limits == wanted,
    )  # fmt: skip


# -- Ray -------------------------------------------------------------------------------------------------------------


class Cluster:
    """A head without CPUs and two workers with one each; a context."""

    def __init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        importlib.import_module("ray")
        made = importlib.import_module("ray.cluster_utils").Cluster
        self._cluster = made(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes: list[Any] = []
        self.address = str(self._cluster.address)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def machines(self) -> list[psutil.Process]:
        """The processes that stand for the worker machines, two that live; one that was lost is replaced."""
        while True:
            found = [psutil.Process(pid) for pid in map(_raylet, self._nodes) if pid is not None]
            if len(found) == 2:
                return found
            self._nodes = [node for node in self._nodes if _raylet(node) is not None]
            self._nodes.append(self._cluster.add_node(num_cpus=1))


def _raylet(node: Any) -> int | None:
    """Process id of a node's raylet, if it lives."""
    (info,) = node.all_processes["raylet"]
    return info.process.pid if info.process.poll() is None else None


def training(process: psutil.Process, study: Path) -> list[psutil.Process]:
    """Runs below a process that have a checkpoint and are not at their end."""
    owners = set()
    for manifest in (study / "runs").glob("*/checkpoint-*/manifest.json"):
        text = _text(manifest.parent.parent / ".owner")
        owners |= {json.loads(text)["pid"]} if text else set()
    return [child for child in process.children(recursive=True) if child.pid in owners]


def _gone(process: psutil.Process) -> bool:
    return not process.is_running()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def wait_for(found: Callable[[], Any], process: "subprocess.Popen[bytes]") -> Any:
    """What a function finds, asked again until it finds something or the study ends (then None)."""
    while process.poll() is None:
        answer = found()
        if answer:
            return answer
        time.sleep(0.02)
    return None


def machine_lost(at: Place, cluster: Cluster) -> table.Line:
    """kill -9 of one of two worker machines: its raylet, its workers, its runs."""
    raylet = cluster.machines()[0]
    process = at.start("--out", "machine", "--executor", "ray", RAY_ADDRESS=cluster.address)
    went = wait_for(lambda: training(raylet, at.folder / "machine"), process) or []
    for one in [raylet, *raylet.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    at.ended(process, 0)
    return at.line(
        "Ray, two worker machines, one killed (-9) while its runs train",
        "runs begun again on the other and resumed, results those of one machine",
        "machine", f"; {len(went)} runs killed with it", bool(went) and at.resumed("machine") >= 1,
    )  # fmt: skip


def worker_lost(at: Place, cluster: Cluster, times: int) -> table.Line:
    """kill -9 of the process of Ray that waits for a run; the run itself is told to save by the system."""
    killed, machines = 0, cluster.machines()
    process = at.start("--out", "worker", "--executor", "ray", RAY_ADDRESS=cluster.address)
    while killed < times:
        raylet = machines[killed % 2]
        went = wait_for(functools.partial(training, raylet, at.folder / "worker"), process)
        if not went:
            break
        parent = went[0].parent()
        if parent is not None and parent.pid != raylet.pid:
            parent.kill()
            killed += 1
            wait_for(functools.partial(_gone, went[0]), process)
    at.ended(process, 0)
    return at.line(
        "Ray, the worker process of a run killed (-9)",
        "the run saves, is begun again and resumed, results those of one machine",
        "worker", f"; {killed} workers killed", killed == times and at.resumed("worker") >= killed,
    )  # fmt: skip


def stopped(at: Place, cluster: Cluster, number: signal.Signals) -> table.Line:
    """A signal to the study: its runs save, it ends with 128 + n, and goes on later."""
    name, machine = f"stopped-{number.name.lower()}", cluster.machines()[0]
    process = at.start("--out", name, "--executor", "ray", RAY_ADDRESS=cluster.address)
    went = wait_for(lambda: training(machine, at.folder / name), process) or []
    process.send_signal(number)
    at.ended(process, 128 + number)
    left = [one for one in went if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    at.run("--out", name, "--executor", "ray", "--resume", RAY_ADDRESS=cluster.address)
    return at.line(
        f"Ray, {number.name} to the study",
        f"status {128 + number}, runs have saved and ended; results of the resumed study those of one machine",
        name, f"; {len(left)} of {len(went)} runs left behind", bool(went) and not left and at.resumed(name) >= 1,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser: argparse.ArgumentParser = table.parser("cluster", __doc__)
    parser.add_argument("--only", choices=TRIALS, nargs="+", help="some of its parts")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    lines: list[table.Line] = []
    wanted = [name for name in given.only or TRIALS if name in QUICK or not given.quick]
    with_ray = [name for name in wanted if name != "slurm"]
    if with_ray and importlib.util.find_spec("ray") is None:
        print("Ray is not installed, so its half is left out: pip install 'sublayer[ray]'")
        with_ray = []
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as opened:
        at = Place(Path(temporary), range(1) if given.quick else range(3), 120 if given.quick else 200)
        at.run("--out", "local", "--jobs", "1")

        def add(line: table.Line) -> None:
            lines.append(line)
            print(f"{line.promise}: {line.measured}", flush=True)

        if "slurm" in wanted:
            add(array_job(at))
        if with_ray:
            cluster = opened.enter_context(Cluster())
            ways: dict[str, Callable[[], table.Line]] = {
                "machine": lambda: machine_lost(at, cluster),
                "worker": lambda: worker_lost(at, cluster, 4),
                "sigint": lambda: stopped(at, cluster, signal.SIGINT),
                "sigterm": lambda: stopped(at, cluster, signal.SIGTERM),
            }
            for name in with_ray:
                add(ways[name]())
    return table.finish("cluster", given, began, lines, {"ray": _version()})


def _version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        return None
