"""A made-up record of a study made of parts, with everything that a record can hold.

`python -m tests.report.made_up_record FOLDER` writes one, with its page.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from sublayer import report

Record = dict[str, Any]
DESIGNS = ("post-norm", "input-norm", "output-norm", "sandwich", "deepnorm", "paf")
DEPTHS = (6, 12, 24, 48, 96)


def loss(design: int, depth: int, warm: bool) -> float | None:
    """Held-out loss that falls with depth; post-norm and PAF are lost where they are deep."""
    if design in (0, 5) and depth >= (96 if warm else 48):
        return None
    return 4.6 - 0.22 * math.log(depth) + 0.05 * design + (0 if warm else 0.08)


def train_part() -> Record:
    """Two charts of six series with intervals and gaps, a table, links to pages."""
    charts = []
    for warm in (True, False):
        series = []
        for i, design in enumerate(DESIGNS):
            points = []
            for depth in DEPTHS:
                y = loss(i, depth, warm)
                spread = 0.01 + 0.01 * i
                low, high = (None, None) if y is None else (y - spread, y + spread)
                points.append({"x": depth, "y": y, "low": low, "high": high})
            series.append({"name": design, "points": points})
        charts.append(
            {
                "title": f"Held-out loss by depth, {'with' if warm else 'without'} warm-up",
                "note": "Means over 3 seeds; bars are 95% intervals.",
                "x": "layers",
                "y": "loss, nats per token",
                "x_log": True,
                "y_log": False,
                "series": series,
                "marks": [{"y": 4.9, "name": "unigram loss"}, {"x": 34.0, "name": "forecast: post-norm breaks"}],
            }
        )
    rows = [
        [d, 3, loss(i, 96, True), 10.0 ** (-i), "diverged" if loss(i, 96, True) is None else "ok"]
        for i, d in enumerate(DESIGNS)
    ]
    table = {
        "title": "At 96 layers, with warm-up",
        "note": "Gradient ratio: norm of the first layer's gradient over the last's.",
        "head": ["design", "seeds", "loss", "gradient ratio", "fate"],
        "rows": rows,
    }
    return {
        "name": "depth",
        "kind": "train",
        "folder": "parts/depth",
        "tables": [table],
        "charts": charts,
        "verdicts": [
            "Without warm-up, post-norm trains at 24 layers and not at 48.",
            "Output-norm trains at 96 layers.",
        ],
        "caveats": ["Width is 64: what a wide model does at this depth was not measured."],
        "facts": {
            "seeds": [0, 1, 2],
            "tokens": 12_288_000,
            "data_sha256": "0123456789abcdef" * 4,
            "pages": {
                "6 layers": "parts/depth/6/report.html",
                "96 layers, no warm-up": "parts/depth/96 cold/report.html",
            },
        },
        "details": {"runs": [{"id": "secret-of-details"}]},
    }


def claims_part() -> Record:
    """One long series with a band, one without; a logarithmic axis with a point that has no place on it."""
    band = [{"x": i, "y": 0.4 * 1.1**i, "low": 0.3 * 1.1**i, "high": 0.5 * 1.1**i} for i in range(30)]
    bare = [{"x": i, "y": 5.0 / (i + 1) if i != 12 else 0.0, "low": None, "high": None} for i in range(30)]
    return {
        "name": "two-claims",
        "kind": "claims",
        "folder": "parts/two-claims",
        "tables": [
            {
                "title": "Layer by layer",
                "note": "",
                "head": ["layer", "attention's term over its input", "what it means"],
                "rows": [
                    [0, 0.1234, "smaller than its input in all of the text, by far the most so in this layer"],
                    [1, None, "not measured"],
                    [2, 0.98765, "as large"],
                ],
            }
        ],
        "charts": [
            {
                "title": "Norm of the term over the stream",
                "note": "",
                "x": "layer",
                "y": "ratio",
                "x_log": False,
                "y_log": True,
                "series": [
                    {"name": "attention, all of the held-out text", "points": band},
                    {"name": "FFN, all of the held-out text", "points": bare},
                ],
                "marks": [{"y": 1.0, "name": "as large as the stream"}, {"x": 3000, "name": "a layer far away"}],
            }
        ],
        "verdicts": ["The norm of what attention adds is smaller than its input in 29 of 30 layers."],
        "caveats": [],
        "facts": {"text": "documentation of Python", "tokens": 4096},
        "details": {},
    }


def build() -> Record:
    """The record, valid by the schema."""
    parts = [train_part(), claims_part()]
    return {
        "schema": "sublayer.record/1",
        "title": "Norm placement against depth",
        "question": "Which placements train at which depth, with and without warm-up?",
        "created": "2026-01-02T03:04:05+00:00",
        "command": ["sublayer", "compare", "--config", "studies/depth of norms/study.yaml"],
        "versions": {"python": "3.11.2", "sublayer": "0.5.0", "torch": "2.13.0"},
        "machine": {"cpu": "made-up CPU", "cores": 2, "memory_gb": 23.4, "platform": "Linux"},
        "config": {"title": "Norm placement against depth", "parts": [{"kind": "train", "layers": [6, 12]}]},
        "config_sha256": "fedcba9876543210" * 4,
        "seconds": 4321.0,
        "parts": parts,
        "verdict": " ".join(line for part in parts for line in part["verdicts"]),
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    made = build()
    (out / "results.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    report.write_record(made, out)
