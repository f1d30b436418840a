"""One run over several processes against the same run in one: DDP, FSDP2, resharding, export, and what is refused.

No dropout, since each process draws its own. Two DDP processes that share two passes must give the very weights of
one; four reach its loss to the rounding of sums. FSDP2 over two processes reaches the loss of DDP, goes on after
SIGTERM to the same weights, goes on with four processes and with two again, and leaves an ordinary safetensors
checkpoint. What cannot be given as asked is refused with status 2, and leaves no folder.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sublayer.train import TrainSpec, finished, prepare
from torture import runs, table, team
from torture.stop import cli, options

CLOSE = 1e-6  # relative difference of losses
QUICK = (("post-norm", "mlm"),)
LONG = (("post-norm", "mlm"), ("paf", "mlm"), ("input-norm", "clm"), ("sandwich", "clm"))
# what is asked for -> (environment, options of the command line, words of the message)
REFUSED: dict[str, tuple[dict[str, str], list[str], str]] = {
    "ddp in one process": ({}, ["--parallel", "ddp"], "needs several processes"),
    "fsdp2 in one process": ({"WORLD_SIZE": "1", "RANK": "0"}, ["--parallel", "fsdp2"], "needs several processes"),
    "none in two processes": ({"WORLD_SIZE": "2"}, ["--parallel", "none"], "2 processes were started"),
    "a way that there is not": ({}, ["--parallel", "zero3"], "is not one of 'none', 'ddp', 'fsdp2'"),
    "two processes that were not told who they are": ({"WORLD_SIZE": "2"}, [], "MASTER_ADDR, MASTER_PORT is not set"),
    "a number of processes that is none": ({"WORLD_SIZE": "two"}, [], "WORLD_SIZE must be a whole number"),
    "accelerate's FSDP": ({"ACCELERATE_USE_FSDP": "true"}, [], "ACCELERATE_USE_FSDP is set"),
    "accelerate's DeepSpeed": ({"ACCELERATE_USE_DEEPSPEED": "true"}, [], "ACCELERATE_USE_DEEPSPEED is set"),
}


class Runs:
    """Runs of one design, in one process or several, and their rows."""

    def __init__(self, top: Path, spec: TrainSpec) -> None:
        self.top, self.spec = top, spec
        self.rows: dict[str, dict[str, Any]] = {}

    def out(self, name: str) -> Path:
        return self.top / name

    def go(self, name: str, size: int, parallel: str | None = None, stop: int | None = None, **changes: Any) -> None:
        """Begin a run or go on with it, to its end or to SIGTERM after step `stop`.

        Raises:
            RuntimeError: it ended in another way.
        """

        def measure(model: Any, step: int) -> dict[str, Any]:
            if step == stop and os.environ.get("RANK", "0") == "0":
                os.kill(os.getpid(), signal.SIGTERM)
            return {"step": step, "tokens": 0, "sums": [], "layers": []}

        wanted = 0 if stop is None else 143
        codes = team.train(
            size, self.spec.with_(measure_every=1, **changes), self.out(name), parallel=parallel, measure=measure
        )
        if set(codes) != {wanted}:
            log = self.out(name).with_suffix(".txt.0").read_text(encoding="utf-8")
            told = self.out(name) / "run.json"
            log += told.read_text(encoding="utf-8") if told.exists() else ""
            raise RuntimeError(f"{name} in {size} processes ended with {codes}, not {wanted}: {log[-3000:]}")
        row = finished(self.out(name))
        if row is not None:
            self.rows[name] = row

    def apart(self, name: str, other: str) -> float:
        """Relative difference of two runs' held-out losses; infinite where one did not end."""
        one, two = (self.rows.get(each, {}).get("eval_loss") for each in (name, other))
        return abs(one - two) / abs(two) if one is not None and two is not None else float("inf")

    def same(self, name: str, other: str) -> bool:
        """Whether two runs have the same weights, to the last bit."""
        return self.rows[name]["weights_sha256"] == self.rows[other]["weights_sha256"]


def exported_loss(spec: TrainSpec, out: Path, told: Path) -> int:
    """In a forked process: load a run's model as any Hugging Face model and write its loss on the held-out rows."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    from sublayer.train.dataset import PackedRows
    from sublayer.train.trainer import collate

    corpus = prepare(spec)
    rows = PackedRows(
        corpus.eval, corpus.vocabulary, spec.objective, spec.seq, mask_rate=spec.mask_rate, limit=spec.eval_rows
    )
    kind = AutoModelForMaskedLM if spec.objective == "mlm" else AutoModelForCausalLM
    model = kind.from_pretrained(out / "model").eval()
    with torch.no_grad():
        loss = float(model(**collate([rows[index] for index in range(len(rows))]))["loss"])
    told.write_text(json.dumps(loss), encoding="utf-8")
    return 0


def shapes(out: Path) -> dict[str, tuple[list[int], str]]:
    """Name -> shape and type of what a run's safetensors file holds."""
    with safe_open(out / "model" / "model.safetensors", framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return {name: (list(one.get_shape()), str(one.get_dtype())) for name, one in slices.items()}


def compared(top: Path, design: str, objective: str, long: bool) -> dict[str, Any]:
    """All runs of one design."""
    steps = 24 if long else 6
    first, second = steps // 3, 2 * steps // 3
    spec = runs.tiny(top, design=design, objective=objective, dropout=0.0, accumulation=2, steps=steps, lr=1e-3)
    folder = top / f"{design}-{objective}"
    folder.mkdir()
    mine = Runs(folder, spec)
    mine.go("one", 1)
    mine.go("ddp-2", 2)
    mine.go("ddp-4", 4)
    mine.go("fsdp-2", 2, "fsdp2")
    mine.go("resumed", 2, "fsdp2", stop=first)
    mine.go("resumed", 2, "fsdp2")
    mine.go("reshard", 2, "fsdp2", stop=first)
    mine.go("reshard", 4, "fsdp2", stop=second)
    mine.go("reshard", 2, "fsdp2")
    ddp4 = [mine.apart("ddp-4", "one")]
    if long:  # four whole passes, and one pass in four parts
        mine.go("one-4", 1, accumulation=4)
        mine.go("ddp-4-4", 4, accumulation=4)
        mine.go("one-1", 1, accumulation=1, batch=4)
        mine.go("ddp-4-1", 4, accumulation=1, batch=4)
        ddp4 += [mine.apart("ddp-4-4", "one-4"), mine.apart("ddp-4-1", "one-1")]
    losses = []
    for name in ("fsdp-2", "reshard"):
        told = folder / f"{name}.json"
        code = runs.wait(runs.start(partial(exported_loss, spec, mine.out(name), told), folder / f"{name}-export.txt"))
        loss = json.loads(told.read_text(encoding="utf-8")) if code == 0 else float("inf")
        losses.append(abs(loss - mine.rows[name]["eval_loss"]) / mine.rows[name]["eval_loss"])
    found = {
        "one process": mine.rows["one"]["eval_loss"],
        "ddp 2: identical": mine.same("ddp-2", "one"),
        "ddp 4": max(ddp4),
        "fsdp2 2 against ddp 2": mine.apart("fsdp-2", "ddp-2"),
        "fsdp2 2 resumed: identical": mine.same("resumed", "fsdp-2"),
        "fsdp2 2-4-2 against fsdp2 2": mine.apart("reshard", "fsdp-2"),
        "exported: tensors as of one process": all(
            shapes(mine.out(name)) == shapes(mine.out("one")) for name in ("fsdp-2", "reshard")
        ),
        "exported: loss": max(losses),
    }
    shutil.rmtree(folder)
    return found


def refusal(codes: list[int | None]) -> bool:
    """Whether the first process ended with status 2, and the others did too or were ended because it had."""
    return codes[0] == 2 and set(codes) <= {2, 143, -signal.SIGTERM}


def refused(top: Path) -> dict[str, str]:
    """What was not refused as it should be: what -> how it ended. Empty when all was."""
    spec = runs.tiny(top, steps=2)
    odd: dict[str, str] = {}

    def judge(what: str, codes: list[int | None], log: Path, out: Path, words: str) -> None:
        text = log.read_text(encoding="utf-8", errors="replace")
        if not refusal(codes) or words not in text or "Traceback" in text or out.exists():
            odd[what] = f"ended with {codes}, folder {out.exists()}, and said {text[-500:]!r}"

    for number, (what, (environment, more, words)) in enumerate(REFUSED.items()):
        out, log = top / f"refused-{number}", top / f"refused-{number}.txt"

        def act(environment: dict[str, str] = environment, more: list[str] = more, out: Path = out) -> int:
            os.environ.update(environment)
            return cli(["train", spec.design, "--out", str(out), *options(spec), *more])

        judge(what, [runs.wait(runs.start(act, log))], log, out, words)
    uneven = spec.with_(batch=3)
    out, log = top / "uneven", top / "uneven.txt"

    def train() -> int:
        return cli(["train", uneven.design, "--out", str(out), *options(uneven)])

    both: Callable[[], int] = train
    judge("a share that does not come out even", team.start(2, both, log).wait(), log.with_name("uneven.txt.0"), out,
          "cannot be shared out equally")  # fmt: skip
    return odd


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("ranks", __doc__).parse_args(arguments)
    began = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        for design, objective in QUICK if given.quick else LONG:
            found[f"{design}, {objective}"] = one = compared(top, design, objective, not given.quick)
            print(f"{design}, {objective}: {one}", flush=True)
        odd = refused(top)
    n = len(found)

    def all_of(key: str, promise: str, asked: str) -> table.Line:
        good = sum(one[key] for one in found.values())
        return table.Line(promise, asked, f"{good} of {n}", good == n)

    def at_most(key: str, promise: str, asked: str) -> table.Line:
        worst = max(one[key] for one in found.values())
        return table.Line(promise, asked, f"at most {worst:.1e} in {n}", worst <= CLOSE)

    within = f"loss within {CLOSE:g} relative"
    count = len(REFUSED) + 1
    lines = [
        all_of("ddp 2: identical", "2 DDP processes against one, dropout 0", "identical weights"),
        at_most("ddp 4", "4 DDP processes against one, dropout 0", within),
        at_most("fsdp2 2 against ddp 2", "2 FSDP2 processes against 2 of DDP", within),
        all_of("fsdp2 2 resumed: identical", "FSDP2 stopped by SIGTERM and resumed", "identical weights"),
        at_most("fsdp2 2-4-2 against fsdp2 2", "FSDP2 with 2, then 4, then 2 processes", within),
        all_of("exported: tensors as of one process", "what FSDP2 leaves", "the tensors of one process's model"),
        at_most("exported: loss", "what FSDP2 leaves, loaded as any model", within),
        table.Line("asked for and not given", "refused with status 2, nothing left",
                   f"{count - len(odd)} of {count}", not odd),
    ]  # fmt: skip
    return table.finish("ranks", given, began, lines, {"runs": found, "not_refused": odd})
