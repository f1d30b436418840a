"""The atlas' figures: how many models were read, how fast, and how they agree with what people read from the source."""

import statistics
from collections.abc import Iterable
from typing import Any

GOAL = {"traced": 0.98, "median": 0.6, "p95": 3.0, "largest seconds": 20.0, "largest MB": 1500}
Models = list[dict[str, Any]]


def outcome(model: dict[str, Any]) -> str:
    """``read`` (every layer, embed and final of every stack), ``in part``, ``declined``, ``not traced``, ``not built``
    or ``failed``."""
    if model["state"] != "traced":
        return str(model["state"])
    told = [bool(group["equation"]) for stack in model["stacks"] for group in stack["layers"]]
    ends = [bool(stack[end]) for stack in model["stacks"] for end in ("embed", "final")]
    if told and all(told) and all(ends) and not model["unknown"]:
        return "read"
    return "in part" if any(told) else "declined"


def reasons(model: dict[str, Any]) -> list[str]:
    """Why something of a model is unknown, or why there is no audit of it."""
    found = [model.get("reason", ""), model.get("unknown", "")]
    for stack in model.get("stacks", ()):
        several = f"{stack['name']}, " if len(model["stacks"]) > 1 else ""
        missing = [g for g in stack["layers"] if not g["equation"]]
        found += [f"{several}layers {g['layers']}: {g['unknown'] or 'no reason was given'}" for g in missing]
        if stack["unknown"] and not missing:
            found.append(several + stack["unknown"])
        found += [f"{several}{end}: unknown" for end in ("embed", "final") if not stack[end] and not stack["unknown"]]
    return list(dict.fromkeys(text for text in found if text))


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)] if ordered else 0.0


def agreement(rows: Models, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every row of the table the fields in which the audit differs: field, expected, found."""
    found = []
    for row, answer in zip(rows, answers, strict=True):
        mine = answer.get("fields", {})
        apart = {k: [v, mine.get(k)] for k, v in row["fields"].items() if mine.get(k) != v}
        if apart:
            found.append({"id": row["id"], "class": row["class"], "differs": apart})
    return found


def errors(models: Models) -> list[dict[str, str]]:
    """Findings of error severity. Every model of transformers counts as healthy, so each of them is a false alarm."""
    return [
        {"class": model["class"], "finding": f"{f['layers']}, {f['place']}: {f['message']} [{f['rule']}]"}
        for model in models
        for f in model.get("findings", ())
        if f["severity"] == "error"
    ]


def figures(models: Models, rows: Models, disagreements: Models, largest: dict[str, Any]) -> dict[str, Any]:
    """Everything that is counted."""
    outcomes = [outcome(model) for model in models]
    traced = [model for model in models if model["state"] == "traced"]
    total = [model["seconds"]["total"] for model in traced]
    return {
        "models": len(models),
        "classes": len({model["class"] for model in models}),
        "built": len(models) - outcomes.count("not built") - outcomes.count("failed"),
        "traced": len(traced),
        "read": outcomes.count("read"),
        "in_part": outcomes.count("in part"),
        "declined": outcomes.count("declined"),
        "failed": len(models) - len(traced),
        "repaired": sum(1 for model in traced if model.get("repairs")),
        "seconds": {
            "median": round(statistics.median(total), 2) if total else 0.0,
            "p95": round(percentile(total, 0.95), 2),
            "most": round(max(total, default=0.0), 2),
        },
        "peak_mb": max((model.get("peak_mb") or 0 for model in models), default=0),
        "table": {"rows": len(rows), "agree": len(rows) - len(disagreements), "disagreements": disagreements},
        "errors": errors(models),
        "apart_from_config": sum(1 for model in models if model.get("apart")),
        "llama_405b": largest,
    }


def said(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures as label and text, goals beside them."""
    count, seconds, table, large = found["models"], found["seconds"], found["table"], found["llama_405b"]
    traced = found["traced"] / count if count else 0.0
    lines = [
        ("models", f"{count} model types with their class, {found['classes']} classes"),
        ("built", f"{found['built']} ({found['repaired']} of the default configs had to be completed)"),
        ("traced", f"{found['traced']} ({traced:.1%}; goal {GOAL['traced']:.0%})"),
        ("equations read", f"{found['read']} wholly, {found['in_part']} in part"),
        ("declined", f"{found['declined']}, each with its reason"),
        ("failed", f"{found['failed']}, each with its reason"),
        ("table of wirings", f"{table['agree']} of {table['rows']} rows agree"),
        ("errors on healthy models", f"{len(found['errors'])} (goal 0)"),
        ("facts apart from the config", f"of {found['apart_from_config']} models, unknown ones counted"),
        (
            "seconds a model",
            (
                f"median {seconds['median']:.2f} (goal {GOAL['median']}), 95th percentile {seconds['p95']:.2f} "
                f"(goal {GOAL['p95']:.0f}), most {seconds['most']:.1f}, after import"
            ),
        ),
    ]
    if large.get("state") == "traced":
        text = (
            f"{large['seconds']:.1f} s (goal {GOAL['largest seconds']:.0f}), peak {large['peak_mb']} MB "
            f"with all imports (goal {GOAL['largest MB']})"
        )
        lines.append(("Llama 3.1 405B", text))
    else:
        lines.append(("Llama 3.1 405B", str(large.get("state", "not audited"))))
    return lines
