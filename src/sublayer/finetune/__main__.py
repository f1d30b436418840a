"""`python -m sublayer.finetune SPEC.json OUT`: one run in a process of its own, as a study starts it.

Exit status: 0 ok, 2 a mistake in what was asked for, 3 diverged, 1 failed, 128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .spec import FinetuneSpec
from .suite import exit_status, prepare_process


def main(arguments: list[str] | None = None) -> int:
    """Run, and turn the row's status into an exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sublayer.finetune", description="Fine-tune one model, from a file."
    )
    parser.add_argument("spec", type=Path, help="settings of the run, JSON")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    given = parser.parse_args(arguments)
    prepare_process()
    from .one import run

    command = [parser.prog, *(arguments if arguments is not None else sys.argv[1:])]
    try:
        spec = FinetuneSpec.load(given.spec)
        row = run(spec, given.out, resume=given.resume, progress=None if given.quiet else sys.stderr, command=command)
    except ValueError as error:
        if not type(error).__module__.startswith("sublayer."):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    if row["status"] != "ok":
        print(f"{row['status']}: {row['reason']}", file=sys.stderr)
    return exit_status([row])


if __name__ == "__main__":
    sys.exit(main())
