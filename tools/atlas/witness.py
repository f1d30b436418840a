"""Read the models of the table of wirings a second time, by torch.export, and compare: `make witness`.

The second witness shares nothing with the first but the reading of the graph: torch.export records the run. A model is
said to agree where every layer that the first reads is read alike by the second. Takes some 20 minutes.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import survey

LIMIT = 300.0  # seconds a model: torch.export takes many times as long as the first witness


def main(arguments: list[str] | None = None) -> int:
    """Audit twice, print what came of it; 1 where the two differ."""
    parser = argparse.ArgumentParser(prog="python tools/atlas/witness.py", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--all", action="store_true", help="every text model of the atlas, not only the table's")
    store = survey.ROOT / "build" / "atlas" / "witness.jsonl"
    parser.add_argument("--store", type=Path, default=store, help="what was read already")
    chosen = parser.parse_args(arguments)
    jobs = [survey.Job(row["class"], overrides=row["overrides"], verify=True) for row in survey.truths()]
    if chosen.all:
        jobs += [survey.Job(entry["class"], entry["model_type"], verify=True) for entry in survey.listed()]
    answers = survey.run(jobs, chosen.store, chosen.jobs, LIMIT)
    counts: Counter[str] = Counter()
    for job in {job.text(): job for job in jobs}.values():
        verdict, why = judged(answers[job.text()])
        counts[verdict] += 1
        if verdict != "agree":
            print(f"{job.model_class} {job.overrides or ''}: {verdict}: {why}")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    return 1 if counts["differ"] else 0


def judged(answer: dict[str, Any]) -> tuple[str, str]:
    """``agree``, ``differ`` or ``one witness`` (there is no second reading), and why."""
    if answer["state"] != "traced":
        return answer["state"], answer["reason"]
    alone = [a for a in answer["assumptions"] if "torch.export" in a]
    if alone:
        return "one witness", alone[0]
    doubts = [answer["unknown"], *(s["unknown"] for s in answer["stacks"])]
    doubts += [layer["unknown"] for s in answer["stacks"] for layer in s["layers"]]
    differ = [doubt for doubt in doubts if "two witnesses differ" in doubt]
    if differ:
        return "differ", differ[0]
    notes = [note for s in answer["stacks"] for note in s["notes"] if "torch.export" in note]
    unread = [note for note in notes if "could not be read" in note]
    return ("read in part", unread[0]) if unread else ("agree", "")


if __name__ == "__main__":
    sys.exit(main())
