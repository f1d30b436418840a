"""A made-up study on disk: results and metrics in the published shape, with numbers that behave like training.

`python -m tests.report.made_up FOLDER` writes one, with its page.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Results = dict[str, Any]
DEPTH, STEPS, EVERY, HIDDEN, SEQ, BATCH = 6, 200, 20, 128, 128, 16
TOKENS = SEQ * BATCH


@dataclass(frozen=True)
class Wiring:
    """One design of the made-up study and the way its runs behave."""

    id: str
    block: str
    floor: float  # held-out loss after long training
    sums: tuple[tuple[tuple[str, str], ...], ...]  # each sum of a layer: (term, kind) pairs
    citation: str | None = None
    title: str | None = None
    growth: float = 0.0  # how fast the stream's norm grows with depth
    lost: dict[int, tuple[str, str]] = field(default_factory=dict)  # seed -> (status, reason)
    unmeasured: tuple[int, ...] = ()  # seeds without measures


ATTN, FFN = ("attn", "attn"), ("ffn", "ffn")
POST = Wiring(
    "post-norm",
    "x = norm(x + attn(x)); x = norm(x + ffn(x))",
    4.62,
    ((ATTN,), (FFN,)),
    "Vaswani et al. 2017, arXiv:1706.03762",
)
PAF = Wiring(
    "paf",
    "x = norm(x + attn(x) + ffn(x))",
    4.68,
    ((ATTN, FFN),),
    "Sonkar & Baraniuk 2023, arXiv:2305.13297",
    "PAF, parallel attention and FFN",
    unmeasured=(1,),
)
INPUT = Wiring(
    "input-norm",
    "x = x + attn(norm(x)); x = x + ffn(norm(x))",
    4.55,
    ((ATTN,), (FFN,)),
    "Xiong et al. 2020, arXiv:2002.04745",
    growth=0.5,
)
MIX = Wiring(
    "mix-ln",
    "block[:25%]: x = norm(x + attn(x)); x = norm(x + ffn(x))\n"
    "block[25%:]: x = x + attn(norm(x)); x = x + ffn(norm(x))",
    4.58,
    ((ATTN,), (FFN,)),
    "Li et al. 2024, arXiv:2412.13795",
    growth=0.3,
    lost={1: ("diverged", "loss was not finite at step 120")},
)
FOUR = (POST, PAF, INPUT, MIX)


def _quartiles(middle: float, rng: random.Random) -> dict[str, float]:
    spread = 0.12 + 0.1 * rng.random()
    return {"q25": middle * (1 - spread), "median": middle, "q75": middle * (1 + 1.3 * spread)}


def _isotropy(level: float, rng: random.Random) -> dict[str, float]:
    level = min(max(level + rng.gauss(0, 0.01), 0.01), 0.99)  # 0: one direction, 1: all directions alike
    return {
        "mean_cosine": 1 - level**0.5,
        "iso_score": level**2,
        "partition_ratio": level,
        "rank_one_residual": level**0.5,
        "effective_rank": 1 + (HIDDEN - 1) * level**1.4,
    }


def _record(wiring: Wiring, step: int, rng: random.Random) -> dict[str, Any]:
    trained = 1 - math.exp(-3 * step / STEPS)
    sums: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for layer in range(DEPTH):
        stream = 11.3 * (1 + wiring.growth * layer * (0.3 + 0.7 * trained))
        level = 0.75 - (0.25 + 0.03 * layer) * trained
        for index, terms in enumerate(wiring.sums):
            added: list[dict[str, Any]] = []
            for term, kind in terms:
                size = (0.2 if kind == "attn" else 0.55) * (1 + trained) / (1 + wiring.growth * layer)
                loss = 0.02 if kind == "attn" else 0.16
                added.append(
                    {
                        "term": term,
                        "kind": kind,
                        "ratio": _quartiles(size * math.exp(rng.gauss(0, 0.06)), rng),
                        "cosine": rng.gauss(0.05, 0.04),
                        "without": _isotropy(level - loss * trained, rng),
                    }
                )
            sums.append(
                {
                    "layer": layer,
                    "section": "block",
                    "value": f"x{index + 1}",
                    "stream": "x",
                    "equation": " + ".join(["x", *(name for name, _ in terms)]),
                    "before": _isotropy(level - 0.06 * trained, rng),
                    "after": _isotropy(level, rng),
                    "terms": added,
                }
            )
        layers.append(
            {
                "layer": layer,
                "stream_norm": _quartiles(stream, rng),
                "gradient_norm": (0.4 - 0.25 * trained) * math.exp(0.18 * (DEPTH - layer) + rng.gauss(0, 0.08)),
                "attention": [
                    {
                        "site": "attn",
                        "entropy": math.log(SEQ) - (0.6 + 0.25 * layer) * trained + rng.gauss(0, 0.05),
                        "first_token": 0.01 + 0.05 * layer * trained * rng.random(),
                    }
                ],
            }
        )
    return {"step": step, "tokens": 2048, "sums": sums, "layers": layers}


def _loss(wiring: Wiring, step: int, seed: int) -> float:
    wobble = random.Random(f"{step}/{seed}").gauss(0, 0.05)  # the same batch order for every design
    own = random.Random(f"{wiring.id}/{step}/{seed}").gauss(0, 0.012)
    return wiring.floor + 0.03 * seed + (9.01 - wiring.floor) * math.exp(-4.2 * step / STEPS) + wobble * 0.4 + own


def _train(wiring: Wiring, seed: int, folder: Path, flops: float) -> tuple[float, int, dict[str, Any] | None]:
    rng = random.Random(f"{wiring.id}-{seed}")
    status = wiring.lost.get(seed, ("ok", ""))[0]
    last = {"ok": STEPS, "diverged": 120, "killed": 80, "failed": 0}[status]
    lines: list[dict[str, Any]] = []
    for step in range(last + 1):
        price = {"tokens": step * TOKENS, "flops": step * TOKENS * flops}
        blow = 0.6 * max(0, step - 95) ** 1.1 if status == "diverged" else 0.0
        if step:
            train = _loss(wiring, step, seed) + rng.gauss(0.05, 0.08) + blow
            row = {"kind": "train", "step": step, "loss": train, "lr": 1e-3, "grad_norm": 1.1, "seconds": 0.2 * step}
            lines.append({**row, **price})
        if step % EVERY == 0:
            lines.append({"kind": "eval", "step": step, "loss": _loss(wiring, step, seed) + blow, **price})
        if step % 40 == 0 and seed not in wiring.unmeasured:
            lines.append({"kind": "measure", **_record(wiring, step, rng)})
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if status == "killed":
        text += '{"kind": "train", "step": 81, "lo'  # a run that is killed may leave half a line
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    final = _record(wiring, STEPS, rng) if seed not in wiring.unmeasured else None
    return _loss(wiring, STEPS, seed), last, final if status == "ok" else None


def _run(wiring: Wiring, seed: int, folder: Path, flops: float) -> dict[str, Any]:
    name = f"{wiring.id}-lr0.001-s{seed}"
    status, reason = wiring.lost.get(seed, ("ok", None))
    loss, done, measures = _train(wiring, seed, folder / "runs" / name, flops)
    return {
        "id": name,
        "design": wiring.id,
        "seed": seed,
        "lr": 1e-3,
        "status": status,
        "eval_loss": loss if status == "ok" else None,
        "reason": reason,
        "steps_done": done,
        "train_loss": loss + 0.06 if status == "ok" else None,
        "seconds": 0.21 * done,
        "tokens_per_second": 9800.0 - 300 * seed if done else None,
        "peak_memory_mb": 640.0 + seed if done else None,
        "init_sha256": {"attn": "a1" * 32, "ffn": "b2" * 32, "embed": "c3" * 32},
        "data_order_sha256": "d4" * 32,
        "metrics": f"runs/{name}/metrics.jsonl",
        "model": f"runs/{name}/model",
        "log": f"runs/{name}/log.txt",
        "measures": measures,
    }


def _row(wiring: Wiring, runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [run["eval_loss"] for run in runs if run["eval_loss"] is not None]
    first = {run["seed"]: run["eval_loss"] for run in base if run["eval_loss"] is not None}
    pairs = [r["eval_loss"] - first[r["seed"]] for r in runs if r["eval_loss"] is not None and r["seed"] in first]
    mean = sum(losses) / len(losses) if losses else None
    sd = math.sqrt(sum((v - mean) ** 2 for v in losses) / (len(losses) - 1)) if mean and len(losses) > 1 else None
    gap = sum(pairs) / len(pairs) if pairs and runs is not base else None
    half = 0.09 if gap is not None and len(pairs) > 1 else None
    return {
        "design": wiring.id,
        "mean": mean,
        "sd": sd,
        "n": len(losses),
        "lost": len(runs) - len(losses),
        "difference": gap,
        "low": gap - half if gap is not None and half else None,
        "high": gap + half if gap is not None and half else None,
    }


def _claims(wirings: Sequence[Wiring], survived: set[str], seeds: int) -> list[dict[str, Any]]:
    def answer(wiring: Wiring, value: float) -> dict[str, Any]:
        if wiring.id not in survived:
            nothing = {"value": None, "low": None, "high": None, "detail": "no run was measured"}
            return {"design": wiring.id, "answer": "unclear", **nothing}
        low, high = (value * 0.8, value * 1.2) if seeds > 1 else (None, None)
        detail = f"{DEPTH} of {DEPTH} layers"
        return {"design": wiring.id, "answer": "holds", "value": value, "low": low, "high": high, "detail": detail}

    return [
        {
            "claim": "ffn-isotropy",
            "question": "Does the FFN keep token embeddings isotropic?",
            "rule": "Holds when IsoScore with the FFN's term exceeds IsoScore without it in most layers.",
            "answers": [answer(w, 0.11) for w in wirings],
        },
        {
            "claim": "attention-small",
            "question": "Is what attention adds small beside its input?",
            "rule": "Holds when the median ratio is below 0.5 in every layer.",
            "answers": [answer(w, 0.31) for w in wirings],
        },
    ]


def build(folder: Path, wirings: Sequence[Wiring] = FOUR, seeds: Sequence[int] = (0, 1)) -> Results:
    """Writes a study's metrics under `folder` and gives its results, as `sublayer compare` would leave them."""
    flops = {w.id: 6.0 * 3_400_000 * (1.0 if w.id != "paf" else 0.99) for w in wirings}
    runs = {w.id: [_run(w, seed, folder, flops[w.id]) for seed in seeds] for w in wirings}
    base = runs[wirings[0].id]
    rows = [_row(w, runs[w.id], base) for w in wirings]
    survived = {row["design"] for row in rows if row["n"]}
    several = len(seeds) > 1 and bool(survived)
    results: Results = {
        "schema": "sublayer.study/1",
        "created": "2026-11-22T08:00:00+00:00",
        "command": ["sublayer", "compare", *(w.id for w in wirings), "--seeds", ",".join(map(str, seeds))],
        "versions": {
            "sublayer": "0.1.0",
            "python": "3.11.2",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "tokenizers": "0.22.0",
        },
        "machine": {
            "platform": "Linux-6.1-x86_64",
            "cpu": "Some CPU @ 2.50GHz",
            "cores": 2,
            "threads": 1,
            "memory_gb": 7.8,
            "device": "cpu",
        },
        "data": {
            "spec": "docs",
            "sha256": "5e" * 32,
            "documents": 4120,
            "train_tokens": 1_210_345,
            "eval_tokens": 64_210,
            "eval_documents": 206,
            "vocab_size": 8192,
            "tokenizer": "trained: byte-level BPE",
            "tokenizer_sha256": "7f" * 32,
        },
        "setup": {
            "objective": "mlm",
            "layers": DEPTH,
            "hidden": HIDDEN,
            "heads": 4,
            "ffn": 4 * HIDDEN,
            "seq": SEQ,
            "batch": BATCH,
            "steps": STEPS,
            "tokens_per_step": TOKENS,
            "lrs": [1e-3],
            "warmup": 20,
            "schedule": "cosine",
            "weight_decay": 0.1,
            "seeds": list(seeds),
            "dtype": "float32",
            "eval_every": EVERY,
            "measure_every": 40,
        },
        "designs": [
            {
                "id": w.id,
                "name": w.id,
                "title": w.title or w.id,
                "equation": w.block,
                "embed": "x = norm(e)",
                "block": w.block,
                "final": "x" if w.growth == 0 else "x = norm(x)",
                "citation": w.citation,
                "parameters": 2_245_632 - (1536 if w.id == "paf" else 0),
                "parameters_embedding": 1_064_960,
                "flops_per_token": flops[w.id],
            }
            for w in wirings
        ],
        "runs": [run for w in wirings for run in runs[w.id]],
        "fairness": {
            "same_data_order": True,
            "same_init": True,
            "parameter_gap": 0.0007 if len(wirings) > 1 else 0.0,
            "flop_gap": 0.01 if len(wirings) > 1 else 0.0,
            "notes": ["PAF has one norm less per layer."] if len(wirings) > 1 else [],
        },
        "comparison": {
            "baseline": wirings[0].id,
            "confidence": 0.95,
            "method": "paired t over seeds" if several else "no interval: one seed",
            "rows": rows,
        },
        "claims": _claims(wirings, survived, len(seeds)),
        "verdict": "Input-norm reached the lowest held-out loss of the four designs; the others are not told apart."
        if survived
        else "No run finished, so no design can be compared.",
        "caveats": [f"{len(seeds)} seed{'s' if several else ''}.", "A tiny model on a small text."],
    }
    return results


if __name__ == "__main__":
    from sublayer import report

    _folder = Path(sys.argv[1])
    _results = build(_folder)
    (_folder / "results.json").write_text(json.dumps(_results, indent=1), encoding="utf-8")
    report.write(_results, _folder, _folder / "report.html")
