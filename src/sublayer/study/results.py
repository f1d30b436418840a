"""From the folder of a study to `results.json`: gather the runs, check fairness, compare, answer the claims. Imports
no torch."""

import datetime
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sublayer import signed
from sublayer.notation import designs as catalogue
from sublayer.study import claims, stats
from sublayer.study.execute import run_folder
from sublayer.study.plan import Plan, PlannedDesign, PlannedRun, price
from sublayer.train import kept
from sublayer.train.frame import cores, versions

SCHEMA = "sublayer.study/1"
NAMED = 20  # of the runs that are missing
GAP = 0.01  # relative difference of parameters or FLOPs from which a caveat says so
# What a run's row says about its files, relative to its own folder.
_FILES = ("metrics", "model", "log")


def gather(plan: Plan, study: Path, facts: Mapping[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """The results of a study as the schema `results.schema.json` describes them.

    Args:
        plan: what was to be run.
        study: the study's folder; runs that are not there yet are "missing".
        facts: facts of the data, as `sublayer.train.prepare` gives them.
        command: the command line that made the study.
    """
    rows = [_row(study, run) for run in plan.runs()]
    designs = [_design(plan, planned, int(facts["vocab_size"])) for planned in plan.designs]
    lrs = {p.id: _best_lr(rows, p.id, plan.lrs) for p in plan.designs}
    losses = {p.id: stats.losses_by_seed(rows, p.id, lrs[p.id]) for p in plan.designs}
    comparison = stats.comparison(losses)
    for row in comparison["rows"]:
        row["lr"] = lrs[row["design"]]
    fairness = _fairness(rows, designs)
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions(),
        "machine": machine(rows),
        "data": dict(facts),
        "setup": _setup(plan),
        "plan_sha256": plan.sha256(),
        "designs": designs,
        "runs": rows,
        "fairness": fairness,
        "comparison": comparison,
        "claims": claims.answer_claims(rows, [p.id for p in plan.designs], lrs),
        "verdict": _verdict(comparison, rows, plan),
        "caveats": _caveats(plan, rows, fairness, comparison),
    }


def machine(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the study ran. Speeds are of this machine; losses depend on the number of threads in their last digits."""
    import psutil

    threads = next((r["threads"] for r in rows if r.get("threads")), None)
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": cores(),
        "threads": threads or 0,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "device": next((r["device"] for r in rows if r.get("device")), None) or "none",
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _row(study: Path, run: PlannedRun) -> dict[str, Any]:
    row, problem = kept.read_row(run_folder(study, run))
    if row is None or problem is not None:
        why = f"{problem}; --resume runs it again" if problem else "not run yet; --resume runs what is missing"
        row = {"status": "missing", "reason": why, "eval_loss": None}
    folder = run_folder(study, run).relative_to(study).as_posix()
    row = {
        "steps_done": 0, "train_loss": None, "seconds": None, "tokens_per_second": None, "peak_memory_mb": None,
        "init_sha256": {}, "data_order_sha256": None, "measures": None, "metrics": "metrics.jsonl", "model": None,
        "log": "log.txt", **row, "id": run.id, "design": run.design, "seed": run.spec.seed, "lr": run.spec.lr,
    }  # fmt: skip
    for key in _FILES:
        row[key] = f"{folder}/{row[key]}" if row[key] else None
    loss = row["eval_loss"]
    if row["status"] == "ok" and not (isinstance(loss, int | float) and math.isfinite(loss)):
        row.update(status="diverged", reason=f"the held-out loss is {loss}", eval_loss=None)
    return row


def _design(plan: Plan, planned: Any, vocab_size: int) -> dict[str, Any]:
    design = planned.design
    name = design.name or (design.names[0] if design.names else None)
    entry = next((e for e in catalogue() if e.name == name), None)
    cost = run_cost(plan, planned, vocab_size)
    return {
        "id": planned.id,
        "name": name,
        "title": entry.title if entry else planned.id,
        "equation": str(design),
        "embed": design.embed,
        "block": design.block,
        "final": design.final,
        "citation": entry.citation if entry else None,
        **cost,
    }


def run_cost(plan: Plan, planned: PlannedDesign, vocab_size: int) -> dict[str, Any]:
    """Parameters and FLOPs of one design of a plan, from formulas."""
    result = price(planned.of(plan.base), vocab_size)
    return {
        "parameters": result.parameters,
        "parameters_embedding": result.embedding_parameters,
        "flops_per_token": result.training_flops_per_token,
        "memory_estimate_mb": round(result.memory.total / 2**20, 1),
    }


def _best_lr(rows: Sequence[Mapping[str, Any]], design: str, lrs: Sequence[float]) -> float:
    """The learning rate a design is shown at: fewest lost runs, then lowest mean held-out loss."""

    def rank(lr: float) -> tuple[int, float]:
        losses = [r["eval_loss"] for r in rows if r["design"] == design and r["lr"] == lr]
        finite = [loss for loss in losses if loss is not None]
        return (len(losses) - len(finite), sum(finite) / len(finite) if finite else math.inf)

    return min(lrs, key=rank)


def _setup(plan: Plan) -> dict[str, Any]:
    base = plan.base
    setup = {k: v for k, v in base.to_dict().items() if k not in ("design", "seed", "lr", "data", "tokenizer", "cache")}
    setup.update(
        steps=base.total_steps,
        tokens_per_step=base.tokens_per_step,
        tokens=base.total_steps * base.tokens_per_step,
        warmup=base.warmup_steps,
        lrs=list(plan.lrs),
        seeds=list(plan.seeds),
    )
    return setup


def _fairness(rows: Sequence[Mapping[str, Any]], designs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # A run that stopped early has read fewer batches: only whole runs have the same hash.
    orders = [r["data_order_sha256"] for r in rows if r["status"] == "ok" and r["data_order_sha256"]]
    same_init: bool | None = None
    notes = []
    for seed in sorted({r["seed"] for r in rows}):
        inits = [r["init_sha256"] for r in rows if r["seed"] == seed and r["init_sha256"]]
        for kind in ("embed", "attn", "ffn"):
            hashes = {i[kind] for i in inits if i.get(kind)}
            if len(hashes) > 1:
                same_init = False
                notes.append(
                    f"Seed {seed}: the initial weights of {kind} are not the same in all designs: they have other "
                    f"call sites or shapes, so they "
                    "share only the parameters that they have in common."
                )
            elif hashes and same_init is None and len(inits) > 1:
                same_init = True
    return {
        "same_data_order": len(set(orders)) == 1 if len(orders) > 1 else None,
        "same_init": same_init,
        "parameter_gap": _gap([d["parameters"] for d in designs]),
        "flop_gap": _gap([d["flops_per_token"] for d in designs]),
        "notes": notes,
    }


def _gap(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / max(values) if values and max(values) > 0 else 0.0


def _verdict(comparison: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """One sentence: which design is best, by how much, and whether the seeds can tell."""
    scored = [r for r in comparison["rows"] if r["mean"] is not None]
    gone = {r["design"] for r in rows if r["eval_loss"] is None and r["status"] != "missing"}
    lost = [r["design"] for r in comparison["rows"] if r["lost"] and r["design"] in gone]
    tail = f" Runs of {_listed(lost)} were lost." if lost else ""
    missing = sum(r["status"] == "missing" for r in rows)
    tail += f" Of {len(rows)} runs {missing} {'is' if missing == 1 else 'are'} not there yet." if missing else ""
    if not scored:
        return f"No run finished, so nothing can be said.{tail}"
    whole = [r for r in scored if not r["lost"]] or scored
    best, *others = sorted(whole, key=lambda r: r["mean"])
    n = best["n"]
    if not others and len(scored) > 1:
        alone = f"{best['design']} is the only design that lost no run"
        return f"{alone}, with a held-out loss of {best['mean']:.4f}.{tail}"
    if not others:
        seeds = f"{n} seed{'s' * (n != 1)}"
        lead = f"{best['design']} reached a held-out loss of {best['mean']:.4f} over {seeds}"
        return f"{lead}; nothing else finished to compare it with.{tail}"
    losses = {d: stats.losses_by_seed(rows, d, r["lr"]) for d, r in ((x["design"], x) for x in comparison["rows"])}
    against = stats.paired(losses[best["design"]], losses[others[0]["design"]], comparison["confidence"])
    interval = f"over {n} seeds the {comparison['confidence']:.0%} interval of that lead"
    second = others[0]
    ahead = second["mean"] - best["mean"]
    lead = (
        f"{best['design']} has the lowest held-out loss, {best['mean']:.4f}, before {second['design']} by {ahead:.4f}"
    )
    if n < 2:
        return f"{lead}; this is one seed, so how much of it is chance is not known.{tail}"
    if against.clear:
        return f"{lead}, and {interval} leaves zero out.{tail}"
    return f"{lead}, but {interval} contains zero: the two are not told apart.{tail}"


def _caveats(
    plan: Plan, rows: Sequence[Mapping[str, Any]], fairness: Mapping[str, Any], comparison: Mapping[str, Any]
) -> list[str]:
    base = plan.base
    tokens = base.total_steps * base.tokens_per_step
    size = f"A model of {base.layers} layers and width {base.hidden} after {tokens:,} tokens"
    found = [f"{size}: the order of designs can be another at larger scale or after longer training."]
    if len(plan.seeds) == 1:
        found.append("One seed: differences have no interval. Give --seeds 0,1,2 for intervals.")
    if len(plan.lrs) == 1:
        found.append(
            f"One learning rate, {plan.lrs[0]:g}, for all designs: a design that wants another is at a disadvantage. "
            f"Give several with --lr 1e-3,3e-3."
        )
    else:
        found.append("Each design is shown at the learning rate that was best for it on the same held-out text.")
    if fairness["parameter_gap"] > GAP:
        found.append(f"Parameters differ by {fairness['parameter_gap']:.1%} between designs.")
    if fairness["flop_gap"] > GAP:
        found.append(f"FLOPs per token differ by {fairness['flop_gap']:.1%} between designs.")
    for planned in plan.designs:
        if planned.settings:
            own = ", ".join(f"{name} {value}" for name, value in planned.settings)
            found.append(f"{planned.id} has settings of its own, which belong to it: {own}.")
    missing = [r["id"] for r in rows if r["status"] == "missing"]
    if missing:
        named = (
            _listed(missing) if len(missing) <= NAMED else f"{_listed(missing[:NAMED])} and {len(missing) - NAMED} more"
        )
        found.append(f"Not run yet: {named}. `--resume` runs them.")
    return found


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else ", ".join(unique[:-1]) + " and " + unique[-1]


def read_results(study: Path) -> dict[str, Any]:
    """The results of a study folder."""
    from sublayer.study.errors import StudyError

    path = study / "results.json"
    try:
        results = signed.read(path)
    except signed.Damaged as error:
        raise StudyError(f"{error}; `sublayer compare --resume` writes it again from the runs") from None
    except OSError as error:
        raise StudyError(f"{path} holds no results of a study: {error}") from None
    if results.get("schema") != SCHEMA:
        raise StudyError(f"{path} must have schema {SCHEMA!r}, got {results.get('schema')!r}")
    return results
