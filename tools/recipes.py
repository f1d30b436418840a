"""Every recipe started, saved, killed, resumed: full width and the full table of tokens, few layers, on this machine.

    python tools/recipes.py [--only NAME,...] [--layers 2] [--steps 4] [--seq 32] [--threads 1] [--data TEXT]
                            [--out FILE.json]

For each recipe `sublayer train --recipe NAME` runs twice: once undisturbed, and once killed (SIGKILL) as soon as its
first checkpoint is whole, then resumed. The two must end alike: weights, order of the data, losses. What it took is
printed, and written as JSON with --out. The exit code is 1 if any recipe fails.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sublayer.recipes import load, names
from sublayer.train import checkpoint
from sublayer.whole_files import write_atomically


def command(name: str, out: Path, args: argparse.Namespace) -> list[str]:
    options = {"layers": args.layers, "steps": args.steps, "seq": args.seq, "threads": args.threads, "out": out}
    options |= {"data": args.data, "cache": args.cache}
    words = [f"--{key}={value}" for key, value in options.items() if value is not None]
    half = max(1, args.steps // 2)
    program = "from sublayer.cli import main; main()"
    return [sys.executable, "-c", program, "train", f"--recipe={name}", "--no-measure", f"--save-steps={half}", *words]


def finish(name: str, out: Path, args: argparse.Namespace, *more: str) -> float:
    began = time.monotonic()
    done = subprocess.run([*command(name, out, args), *more], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    return time.monotonic() - began


def interrupt(name: str, out: Path, args: argparse.Namespace) -> int:
    """Kill a run once its first checkpoint is whole; returns that checkpoint's step."""
    process = subprocess.Popen(command(name, out, args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if out.is_dir() and any(out.glob(f"checkpoint-*/{checkpoint.MANIFEST}")):
                process.send_signal(signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            process.kill()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"it ended with {process.returncode} before it could be killed")
    newest = checkpoint.latest(out)
    if newest is None:
        raise RuntimeError("no whole checkpoint is left")
    return int(newest[1]["step"])


def ending(out: Path) -> dict[str, Any]:
    row = json.loads((out / "run.json").read_text(encoding="utf-8"))
    kept = ("status", "steps_done", "eval_loss", "train_loss", "data_order_sha256", "weights_sha256", "parameters")
    return {key: row[key] for key in kept}


def prove(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    plain, broken = folder / "plain", folder / "broken"
    seconds = finish(name, plain, args)
    at = interrupt(name, broken, args)
    again = finish(name, broken, args, "--resume")
    expected, found = ending(plain), ending(broken)
    if found != expected:
        differing = [f"{key}: {expected[key]} and {found[key]}" for key in expected if expected[key] != found[key]]
        raise RuntimeError(f"the resumed run ended otherwise: {'; '.join(differing)}")
    width = load(name).model["hidden_size"]
    return {
        "recipe": name, "width": width, "killed_after_step": at, "seconds": round(seconds, 1),
        "seconds_resumed": round(again, 1), **expected,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of recipes, separated by commas")
    for option, default in (("layers", 2), ("steps", 4), ("seq", 32), ("threads", 1)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--data", help="text; default the local documentation")
    parser.add_argument("--cache", help="folder of tokenised data")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, failed = [], 0
    for name in args.only.split(",") if args.only else names():
        folder = Path(tempfile.mkdtemp(prefix="recipe-"))
        try:
            row = prove(name, folder, args)
            rows.append(row)
            print(
                f"{name:<24}{row['parameters']:>14,} parameters; killed after step {row['killed_after_step']}, resumed "
                f"alike: {row['seconds']:.0f} s + {row['seconds_resumed']:.0f} s",
                flush=True,
            )
        except RuntimeError as error:
            failed += 1
            print(f"{name:<24}FAILED: {error}", flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if args.out is not None:
        import torch

        record = {
            "command": ["python", "tools/recipes.py", *sys.argv[1:]], "torch": torch.__version__, "seed": 0,
            "python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count(), "rows": rows,
            "failed": failed,
        }  # fmt: skip
        write_atomically(args.out, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
