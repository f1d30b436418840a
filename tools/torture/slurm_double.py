"""Stands in for SLURM's `sbatch` and `scontrol requeue` on one machine; the scripts of a study are real.

`sbatch` of an array job runs its tasks, as many at once as the script says, until none is queued any more, then prints
the job's number; another job it starts and leaves alone. What is to go wrong stands in `$SLURM_DOUBLE/trouble.json`:
{index: [[kind, pattern], ...]}. As soon as a file fits the first pattern of a task that runs, the task is killed with
all its processes and queued again (`node`: its machine is lost), or its script is told by SIGUSR1 that the time limit
is near (`limit`), or by SIGTERM that it is to end (`cancel`). Standard library only.
"""

import glob
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

JOB = "4711"


def install(folder: Path) -> None:
    """Put `sbatch` and `scontrol` into a folder that goes on the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("sbatch", "scontrol"):
        path = folder / name
        here = shlex.join([sys.executable, str(Path(__file__).resolve()), name])
        path.write_text(f'#!/bin/sh\nexec {here} "$@"\n', encoding="utf-8")
        path.chmod(0o755)


def options(script: Path) -> dict[str, str]:
    """What the head of a script says."""
    found = {}
    for line in script.read_text(encoding="utf-8").splitlines():
        if line.startswith("#SBATCH "):
            for word in shlex.split(line.removeprefix("#SBATCH ")):
                key, _, value = word.partition("=")
                found[key] = value
    return found


def indexes(text: str) -> tuple[list[int], int]:
    """Tasks of `--array`, and how many run at once."""
    listed, _, most = text.partition("%")
    found: list[int] = []
    for part in listed.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found, int(most or len(found))


def sbatch(words: list[str]) -> int:
    """Run a script: an array job task by task, another at once."""
    here, script = Path(os.environ["SLURM_DOUBLE"]), Path(words[-1])
    said = options(script)
    place = said["--chdir"].replace("%%", "%")
    with open(here / "submitted.txt", "a", encoding="utf-8") as log:
        log.write(shlex.join(words) + "\n")
    if "--array" not in said:
        log_file, end = said["--output"].replace("%%", "%"), f"echo ended {script.name} $? >> {shlex.quote(str(here))}"
        with open(log_file, "ab") as out:
            line = f"bash {shlex.quote(str(script))}; {end}/happened.txt"
            subprocess.Popen(["bash", "-c", line], cwd=place, stdout=out, stderr=out, start_new_session=True)
        print(JOB)
        return 0
    queue, most = indexes(said["--array"])
    trouble = json.loads((here / "trouble.json").read_text(encoding="utf-8"))
    running: dict[int, subprocess.Popen[bytes]] = {}
    while queue or running:
        while queue and len(running) < most:
            index = queue.pop(0)
            log_file = said["--output"].replace("%a", str(index)).replace("%%", "%")
            with open(log_file, "ab") as out:
                running[index] = subprocess.Popen(
                    ["bash", str(script)], cwd=place, stdout=out, stderr=out, start_new_session=True,
                    env=os.environ | {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(index)},
                )  # fmt: skip
        time.sleep(0.02)
        for index, process in list(running.items()):
            kind, pattern = next(iter(trouble.get(str(index), [])), ("", ""))
            if kind and glob.glob(pattern) and process.poll() is None:
                trouble[str(index)].pop(0)
                happened(here, f"{kind} {index}")
                if kind == "node":
                    os.killpg(process.pid, signal.SIGKILL)
                    queue.append(index)  # --requeue
                else:
                    process.send_signal(signal.SIGUSR1 if kind == "limit" else signal.SIGTERM)
            if process.poll() is not None:
                del running[index]
                happened(here, f"ended {index} {process.returncode}")
        again = here / "requeue.txt"
        if again.exists():
            queue += [int(index) for index in re.findall(rf"^{JOB}_(\d+)$", again.read_text(encoding="utf-8"), re.M)]
            again.unlink()
    print(JOB)
    return 0


def happened(here: Path, what: str) -> None:
    """Note what was done, for whoever looks later."""
    with open(here / "happened.txt", "a", encoding="utf-8") as log:
        log.write(what + "\n")


def scontrol(words: list[str]) -> int:
    """`scontrol requeue JOB_TASK`."""
    if words[0] != "requeue":
        return 1
    with open(Path(os.environ["SLURM_DOUBLE"]) / "requeue.txt", "a", encoding="utf-8") as file:
        file.write(words[1] + "\n")
    return 0


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
