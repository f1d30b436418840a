"""A small text, and runs that take a second."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sublayer.train import TrainSpec

WORDS = "the a residual stream norm layer reads writes adds token sees no other document and of in to is by".split()


def sentences(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return "\n".join(" ".join(draw.choices(WORDS, k=draw.randint(4, 12))).capitalize() + "." for _ in range(count))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of two to forty sentences."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(sentences(i, 2 + i), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def spec(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainSpec]:
    """A run of eight steps of a model with two layers, with some settings changed."""
    cache = tmp_path_factory.mktemp("data")

    def make(**changes: Any) -> TrainSpec:
        settings: dict[str, Any] = {
            "design": "post-norm", "layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "dropout": 0.1, "data": str(texts),
            "objective": "mlm", "vocab_size": 320, "seq": 32, "batch": 4, "steps": 8, "lr": 1e-2, "eval_rows": 8,
            "measure_rows": 4, "threads": 1, "log_every": 1, "cache": str(cache), "device": "cpu",
        }  # fmt: skip
        return TrainSpec(**{**settings, **changes})

    return make
