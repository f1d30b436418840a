"""Read every text model of transformers, write docs/atlas, print the figures: `make atlas`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import figures
import page
import survey

from sublayer.whole_files import write_atomically

SCHEMA = "sublayer.atlas/1"


def main(arguments: list[str] | None = None) -> int:
    """Audit, write, print."""
    parser = argparse.ArgumentParser(prog="python tools/atlas", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--limit", type=float, default=survey.LIMIT, help="seconds a model may take")
    parser.add_argument(
        "--out", type=Path, default=survey.ROOT / "docs" / "atlas", help="folder of the page and the JSON"
    )
    parser.add_argument(
        "--store", type=Path, default=survey.ROOT / "build" / "atlas" / "finished.jsonl", help="what was read already"
    )
    chosen = parser.parse_args(arguments)

    entries, rows = survey.listed(), survey.truths()
    jobs = [survey.Job(entry["class"], entry["model_type"]) for entry in entries]
    of_class = {job.model_class: job for job in reversed(jobs)}
    known = [_row_job(row, of_class) for row in rows]
    answers = survey.run([*jobs, *known], chosen.store, chosen.jobs, chosen.limit)
    models = [{**entry, **answers[job.text()]} for entry, job in zip(entries, jobs, strict=True)]
    disagreements = figures.agreement(rows, [answers[job.text()] for job in known])
    found = figures.figures(models, rows, disagreements, survey.largest())
    atlas = {
        "schema": SCHEMA,
        "command": "make atlas",
        "code": survey.code(),
        "versions": survey.versions(),
        "figures": found,
        "models": [_published(model) for model in models],
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_atomically(chosen.out / "atlas.json", _json(atlas))
    write_atomically(chosen.out / "index.html", page.write(atlas))
    _print(found, models)
    print(f"\n{chosen.out / 'index.html'}")
    return 0


def _row_job(row: dict[str, Any], of_class: dict[str, survey.Job]) -> survey.Job:
    """The job of a row of the table: that of the atlas where the row is about a default config."""
    if not row["overrides"] and row["class"] in of_class:
        return of_class[row["class"]]
    return survey.Job(row["class"], overrides=row["overrides"])


def _published(model: dict[str, Any]) -> dict[str, Any]:
    """What the atlas says of a model: not what only its checks need."""
    left_out = {"fields"}
    return {"outcome": figures.outcome(model), **{k: v for k, v in model.items() if k not in left_out}}


def _json(atlas: dict[str, Any]) -> str:
    """JSON with one line a model, so that two atlases can be compared by line."""
    head = {k: v for k, v in atlas.items() if k != "models"}
    models = ",\n".join(json.dumps(model, ensure_ascii=False) for model in atlas["models"])
    return json.dumps(head, ensure_ascii=False, indent=1)[:-2] + ',\n "models": [\n' + models + "\n ]\n}\n"


def _print(found: dict[str, Any], models: list[dict[str, Any]]) -> None:
    for label, text in figures.said(found):
        print(f"{label:<30}{text}")
    for title, chosen in (
        ("unknown, wholly or in part", [m for m in models if figures.outcome(m) in ("in part", "declined")]),
        ("failed", [m for m in models if m["state"] != "traced"]),
    ):
        if chosen:
            print(f"\n{title}:")
        for model in chosen:
            print(f"  {model['class']} ({model['model_type']}): {'; '.join(figures.reasons(model))}")
    if found["errors"]:
        print("\nfindings of error severity:")
    for error in found["errors"]:
        print(f"  {error['class']}: {error['finding']}")
    apart = [m for m in models if m.get("apart")]
    if apart:
        print("\nfacts that the config does not hold, or that are unknown although it does:")
    for model in apart:
        print(f"  {model['class']}: {'; '.join(model['apart'])}")
    if found["table"]["disagreements"]:
        print("\nrows of the table that differ:")
    for row in found["table"]["disagreements"]:
        differs = "; ".join(f"{k}: {v[0]} expected, {v[1]} found" for k, v in row["differs"].items())
        print(f"  {row['id']} ({row['class']}): {differs}")


if __name__ == "__main__":
    sys.exit(main())
