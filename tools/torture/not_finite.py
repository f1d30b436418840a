"""NaN or infinity at a random step, pass, layer and term: the run is `diverged` and says where it began; others go on.

One number too many is made in one training pass: in what a module gives, in the gradient on its way back through it,
or in the loss itself. The row must have the step, the layer and the term, and forwards or backwards; the run leaves no
final weights. A study in which some runs diverge must finish the others.
"""

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sublayer.study import Plan, run_study
from sublayer.train import TrainSpec, finished
from torture import runs, table

TIMES, QUICK = 80, 8
STEPS = 4
TERMS = {
    "attn": ("attn", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"),
    "ffn": ("ffn", "ffn.up_proj", "ffn.down_proj"),
    "stream_norm": ("stream_norm",),
    "stream_norm_2": ("stream_norm_2",),
}
OUTSIDE = {"embedding": "model.embed_tokens", "head": "lm_head"}
DESIGNS = {"post-norm": tuple(TERMS), "paf": ("attn", "ffn", "stream_norm")}


def drawn(draw: random.Random, turn: int) -> dict[str, Any]:
    """One case: which design, step and pass, which term of which layer, which way, NaN or infinity."""
    design = draw.choice(list(DESIGNS))
    terms = [*DESIGNS[design], *OUTSIDE, "loss"]
    term = terms[turn % len(terms)]
    accumulation = draw.choice((1, 3))
    layer = draw.randrange(2) if term in TERMS else None
    module = f"model.layers.{layer}.{draw.choice(TERMS[term])}" if term in TERMS else OUTSIDE.get(term, "")
    return {"design": design, "accumulation": accumulation, "step": draw.randint(1, STEPS), "layer": layer,
            "term": term, "pass": draw.randint(1, accumulation), "module": module,
            "way": "forward" if term == "loss" else draw.choice(("forward", "backward")),
            "value": draw.choice(("nan", "inf"))}  # fmt: skip


def words(case: dict[str, Any]) -> str:
    """What the row must say."""
    where = f"the {case['way']} pass of "
    if case["term"] in TERMS:
        return f"at step {case['step']}; it began in {where}layer {case['layer']}, term {case['term']}"
    return f"at step {case['step']}; it began in {where}{case['module'] or 'the loss'}"


def lost(spec: TrainSpec, out: Path, case: dict[str, Any]) -> int:
    """In a forked process: a run in which that happens."""
    import torch

    from sublayer.train.build import build as build_model

    value, passes = float(case["value"]), 0
    first = (case["step"] - 1) * case["accumulation"] + case["pass"]
    bad = (first, first + case["accumulation"])  # once more when the step is searched

    class OnTheWayBack(torch.autograd.Function):
        """The number itself, with a gradient that is none."""

        @staticmethod
        def forward(context: Any, number: torch.Tensor) -> torch.Tensor:
            return number.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * value

    def count(module: Any, given: Any) -> None:
        nonlocal passes
        passes += module.training

    def touch(module: Any, given: Any, result: Any) -> Any:
        if not module.training or passes not in bad:
            return result
        if case["term"] == "loss":
            result["loss"] = result["loss"] * value
            return result
        return result * value if case["way"] == "forward" else OnTheWayBack.apply(result)

    def build(spec: Any, vocabulary: Any) -> Any:
        model = build_model(spec, vocabulary)
        model.register_forward_pre_hook(count)
        model.get_submodule(case["module"]).register_forward_hook(touch)
        return model

    return runs.train(spec, out, build=build)


def in_a_study(top: Path) -> tuple[Counter[str], list[str]]:
    """A study with a learning rate at which runs diverge: how its runs ended, and what is odd."""
    spec = runs.tiny(top, steps=6)
    base = {key: value for key, value in spec.to_dict().items() if key not in ("design", "seed", "lr")}
    plan = Plan.make(["post-norm", "paf"], seeds=(0,), lrs=(1e-2, 1e30), size="tiny", **base)

    def act() -> int:
        study = run_study(plan, top / "study", jobs=1, measure=False, output=None)
        (top / "study.json").write_text(json.dumps(study.results["runs"]), encoding="utf-8")
        return 0

    code = runs.wait(runs.start(act, top / "study.txt"), 600)
    if code != 0:
        return Counter(), [f"the study ended with {code}: {(top / 'study.txt').read_text(encoding='utf-8')[-800:]}"]
    rows = json.loads((top / "study.json").read_text(encoding="utf-8"))
    odd = [f"{row['id']}: {row['status']}, {row['reason']}" for row in rows
           if row["status"] != ("diverged" if row["lr"] > 1 else "ok")
           or (row["lr"] > 1 and "it began in" not in str(row["reason"]))]  # fmt: skip
    return Counter(row["status"] for row in rows), odd


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("not_finite", __doc__).parse_args(arguments)
    began, draw = time.monotonic(), random.Random(given.seed)
    tried: Counter[str] = Counter()
    named = marked = 0
    odd: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        for turn in range(QUICK if given.quick else TIMES):
            case, out = drawn(draw, turn), top / "run"
            spec = runs.tiny(top, design=case["design"], accumulation=case["accumulation"], steps=STEPS, save_steps=1)

            def act(spec: TrainSpec = spec, out: Path = out, case: dict[str, Any] = case) -> int:
                return lost(spec, out, case)

            code = runs.wait(runs.start(act, top / "log.txt"))
            row = finished(out) or {}
            reason = str(row.get("reason"))
            tried[f"{case['term']}, {case['way']}"] += 1
            good = words(case) in reason
            ends = (code, row.get("status"), row.get("steps_done")) == (3, "diverged", case["step"] - 1)
            lost_well = ends and not (out / "model").exists() and row["eval_loss"] is None
            named += good
            marked += lost_well
            if not (good and lost_well):
                odd.append(f"{case}: ended with {code}, {row.get('status')} after {row.get('steps_done')}: {reason}")
            shutil.rmtree(out, ignore_errors=True)
        ends_of_study, wrong = in_a_study(top)
        odd += wrong
    n = sum(tried.values())
    lines = [
        table.Line("NaN or infinity at random steps, layers and terms, forwards and backwards",
                   "all: step, layer and term named; diverged", f"named {named}, diverged {marked} of {n}",
                   named == marked == n > 0),
        table.Line("the other runs of a study", "go on", ", ".join(f"{c} {s}" for s, c in ends_of_study.items()),
                   not wrong),
    ]  # fmt: skip
    return table.finish("not_finite", given, began, lines, {"tried": dict(tried), "odd": odd})
