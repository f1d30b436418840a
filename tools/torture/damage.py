"""Damage in every file of a checkpoint: found, never loaded, set aside with a message, and the one before it taken.

One byte changed (at random places), cut short (to random lengths, nothing included), missing, added (a file, a folder
with a file, a link), for each file of the newest of two checkpoints, its manifest and its own state included. Each
damaged folder is looked at by the run's own code; for one of each kind and file the whole run is resumed and its
weights compared. If no checkpoint is whole, the run begins again and says so.
"""

import io
import logging
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from sublayer.train import TrainSpec, checkpoint
from torture import runs, table

BYTES, QUICK_BYTES = 40, 3  # places in each file where a byte is changed, lengths to which it is cut
KINDS = ("changed", "cut", "missing", "added")


def damage(folder: Path, name: str, kind: str, draw: random.Random) -> str:
    """Damage one file of a checkpoint (or add something beside it), and say how."""
    path = folder / name
    content = path.read_bytes()
    if kind == "changed":
        at = draw.randrange(len(content))
        other = bytearray(content)
        other[at] ^= draw.randrange(1, 256)
        path.write_bytes(other)
        return f"byte {at} of {name} changed"
    if kind == "cut":
        size = draw.choice([0, draw.randrange(len(content)), len(content) - 1])
        path.write_bytes(content[:size])
        return f"{name} cut to {size} bytes"
    if kind == "missing":
        path.unlink()
        return f"{name} missing"
    what = draw.choice(["a copy", "a file in a folder", "a link", "a longer file"])
    if what == "a copy":
        shutil.copyfile(path, path.with_name(f"{path.stem}-2{path.suffix}"))
    elif what == "a file in a folder":
        (folder / "more").mkdir()
        shutil.copyfile(path, folder / "more" / path.name)
    elif what == "a link":
        (folder / f"{path.name}.link").symlink_to(path)
    else:
        path.write_bytes(content + bytes(draw.randrange(1, 64)))
    return f"{what} added, of {name}"


def look(out: Path) -> tuple[int | None, str]:
    """What the run's own code takes of a folder: the step, or None; and what it said."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    log = logging.getLogger("sublayer")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        found = checkpoint.latest(out)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = True
    return (None if found is None else int(found[1]["step"])), said.getvalue()


def stopped(spec: TrainSpec, out: Path, steps: int) -> None:
    """A run that was stopped after some steps, with the checkpoints that it made by then."""

    def measure(model: Any, step: int) -> dict[str, Any]:
        if step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"step": step, "tokens": 0, "sums": [], "layers": []}

    code = runs.wait(runs.start(partial(runs.train, spec, out, measure=measure), out.with_suffix(".txt")))
    if code != 143:
        raise RuntimeError(f"a run that was to stop ended with {code}; see {out.with_suffix('.txt')}")


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("damage", __doc__).parse_args(arguments)
    began, draw = time.monotonic(), random.Random(given.seed)
    tried: Counter[str] = Counter()
    found = aside = before = 0
    resumed = identical = 0
    odd: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        spec = runs.tiny(top, steps=8, save_steps=2, keep=2, measure_every=1)
        expected = runs.whole(spec, top / "whole")
        half = top / "half"
        stopped(spec, half, 4)
        (newest, folder), (older, _) = checkpoint.steps(half)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        times = QUICK_BYTES if given.quick else BYTES
        for name in names:
            for kind in KINDS:
                for turn in range(times if kind in ("changed", "cut") else 1 if kind == "missing" else 4):
                    out = top / "run"
                    shutil.copytree(half, out)
                    told = damage(out / folder.name, name, kind, draw)
                    tried[kind] += 1
                    step, said = look(out)
                    unfinished = name == checkpoint.MANIFEST and kind == "missing"  # then it was never finished
                    found += step != newest
                    before += step == older
                    moved = (out / f"damaged-checkpoint-{newest}-1").is_dir() and "is damaged" in said
                    aside += moved or (unfinished and "was not finished: removed" in said)
                    if step != older or not (moved or unfinished):
                        odd.append(f"{told}: took step {step}, said {said!r}")
                    if turn == 0 and (not given.quick or name in ("model.safetensors", "sublayer_state.json")):
                        code = runs.wait(runs.start(partial(runs.train, spec, out), top / "resume.txt"))
                        resumed += 1
                        same = code == 0 and runs.weights(out) == expected
                        identical += same
                        if not same:
                            odd.append(f"{told}: resuming ended with {code}, or with other weights")
                    shutil.rmtree(out)
        out = top / "none"  # nothing whole is left
        shutil.copytree(half, out)
        for _, one in checkpoint.steps(out):
            (one / "optimizer.pt").write_bytes(b"")
        code = runs.wait(runs.start(partial(runs.train, spec, out), top / "none.txt"))
        said = (top / "none.txt").read_text(encoding="utf-8")
        log = (out / "log.txt").read_text(encoding="utf-8")
        again = code == 0 and runs.weights(out) == expected and "no checkpoint is whole" in log
        if not again:
            odd.append(f"with no whole checkpoint: ended with {code}, said {said[-300:]!r}")
    total = sum(tried.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in tried.items())
    lines = [
        table.Line(
            f"damage in the {len(names)} files of a checkpoint ({kinds})",
            "all found, never loaded, set aside with a message, the one before taken",
            f"found {found}, set aside {aside}, the one before taken {before} of {total}",
            found == aside == before == total > 0 and not odd,
        ),
        table.Line("resumed after damage", "identical weights", f"{identical} of {resumed}", identical == resumed > 0),
        table.Line("no checkpoint is whole", "begins again, clearly; identical", "so" if again else "not so", again),
    ]
    return table.finish("damage", given, began, lines, {"files": names, "tried": dict(tried), "odd": odd})
