"""`python -m sublayer.train SPEC.json OUT`: one run in a process of its own, as a study starts it.

Exit status: 0 ok, 3 diverged, 1 failed, 128 + n stopped by signal n (143 SIGTERM, 130 SIGINT), 137 out of memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .distributed import leave, refuse, speaks
from .errors import TrainError
from .spec import TrainSpec


def main(arguments: list[str] | None = None) -> int:
    """Run, and turn the row's status into an exit status."""
    parser = argparse.ArgumentParser(prog="python -m sublayer.train", description="Train one model, from a file.")
    parser.add_argument("spec", type=Path, help="settings of the run, JSON")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    parser.add_argument("--no-measure", action="store_true", help="do not look inside the model")
    parser.add_argument("--model-dir", type=Path, help="folder of the final weights (default OUT/model)")
    parser.add_argument("--flops-per-token", type=float, help="of training, for the records")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    given = parser.parse_args(arguments)
    # read once, when torch loads its OpenMP runtime: threads that spin while waiting take the cores from each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .frame import keep_freed_memory
    from .runner import run

    keep_freed_memory()
    try:
        row = run(
            TrainSpec.load(given.spec),
            given.out,
            resume=given.resume,
            measure=not given.no_measure,
            model_dir=given.model_dir,
            progress=None if given.quiet else sys.stderr,
            flops_per_token=given.flops_per_token,
        )
    except TrainError as error:
        refuse(f"error: {error}")
        return 2
    if row["status"] != "ok" and speaks():
        print(f"{row['status']}: {row['reason']}", file=sys.stderr)
    codes = {"ok": 0, "diverged": 3, "failed": 1, "killed": 128 + (row["signal"] or 9)}
    return codes[row["status"]]


if __name__ == "__main__":
    leave(main())
