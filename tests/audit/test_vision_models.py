"""Models of timm and torchvision against a table of wirings that people read from the source.

Neither package is among our dependencies: without them these tests are skipped, and `test_vision_blocks.py` has what
they show in small models of our own.
"""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sublayer.audit import audit

ROWS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("vision_truth.json").read_text(encoding="utf-8"))[
    "rows"
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Workers of pytest-xdist must not fight for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _torchvision() -> Iterator[None]:
    """A torchvision built for another torch lacks two operators, which no transformer calls: declare them."""
    library = None
    if find_spec("torchvision") is not None:
        try:
            import_module("torchvision")
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(name + "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
    yield
    del library


def build(package: str, model: str) -> nn.Module:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; it is no dependency of ours")
    if package == "timm":
        make = import_module("timm").create_model
    else:
        make = import_module("torchvision.models").get_model
    try:
        with torch.device("meta"):
            built = make(model)
    except (NotImplementedError, RuntimeError):  # it computes something from its weights while it is built
        built = make(model)
    assert isinstance(built, nn.Module)
    return built


@pytest.mark.filterwarnings("ignore")  # other people's packages warn of what they like
@pytest.mark.parametrize("row", ROWS, ids=[f"{row['package']}-{row['model']}" for row in ROWS])
def test_a_vision_models_wiring_is_what_the_source_says(row: dict[str, Any]) -> None:
    found = audit(build(row["package"], row["model"]))
    told = []
    for stack in found.stacks:
        runs = [[*group] for _, group in groupby(stack.layers, lambda layer: layer.equation)]
        layers = [[run[0].index, run[-1].index, run[0].equation] for run in runs]
        told.append({"embed": stack.embed, "layers": layers, "final": stack.final})
    assert told == row["stacks"], str(found)
    assert all(stack.design is not None for stack in found.stacks)
    assert [f for f in found.findings if f.severity == "error"] == []
    # (Two norms one after the other are what vitamin's layers have.)
    assert {f.rule for f in found.findings if f.severity == "warning"} <= {"norm-twice"}
