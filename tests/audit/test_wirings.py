"""Models of transformers in their default sizes against a table of wirings that people read from the source."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sublayer.audit.defaults import candidates
from sublayer.audit.read import audit
from sublayer.audit.result import Audit, AuditError
from sublayer.audit.target import build
from sublayer.notation import parse
from tests.audit.truth import fields

ROWS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("wirings.json").read_text(encoding="utf-8"))["rows"]
SERIES = "x = x + attn(norm(x)); x = x + ffn(norm(x))"
SHARED = "h = norm(x); x = x + attn(h) + ffn(h)"
TWO_NORMS = "x = x + attn(norm_a(x)) + ffn(norm_b(x))"
POST = "x = norm(x + attn(x)); x = norm(x + ffn(x))"
NORMED = "h = norm(x); x = h + attn(h); h = norm(x); x = h + ffn(h)"


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Workers of pytest-xdist must not fight for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read(name: str, **overrides: Any) -> Audit:
    """The audit of a class in its default config, with the documented repairs where that does not run."""
    model_class = getattr(transformers, name)
    if overrides:
        return audit(build(model_class.config_class(**overrides), model_class))
    last: AuditError | None = None
    for config, _ in candidates(model_class.config_class):
        try:
            return audit(build(config, model_class))
        except AuditError as error:
            last = error
    raise AssertionError(f"{name} cannot be run in any default config: {last}")


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_a_wiring_is_what_the_source_says(row: dict[str, Any]) -> None:
    found = read(row["class"], **row["overrides"])
    assert fields(found) == row["fields"], str(found)
    assert found.main is not None
    ops = {branch.op for layer in found.main.layers for branch in layer.branches}
    assert sorted(ops & {"attn", "dot", "mixer"}) == row["mixing"], str(found)
    assert [f for f in found.findings if f.severity == "error"] == []


# One class, one switch of its config, another equation. The first row of a class is what it does by default.
SWITCHES = [
    ("GPTNeoXForCausalLM", {"use_parallel_residual": True}, TWO_NORMS),
    ("GPTNeoXForCausalLM", {"use_parallel_residual": False}, SERIES),
    ("FalconForCausalLM", {"parallel_attn": True}, SHARED),
    ("FalconForCausalLM", {"parallel_attn": False}, SERIES),
    ("FalconForCausalLM", {"new_decoder_architecture": True}, TWO_NORMS),
    ("FalconForCausalLM", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, SHARED),
    ("OPTForCausalLM", {"do_layer_norm_before": True}, SERIES),
    ("OPTForCausalLM", {"do_layer_norm_before": False}, POST),
    ("BloomForCausalLM", {"apply_residual_connection_post_layernorm": False}, SERIES),
    ("BloomForCausalLM", {"apply_residual_connection_post_layernorm": True}, NORMED),
    ("StableLmForCausalLM", {"use_parallel_residual": False}, SERIES),
    ("StableLmForCausalLM", {"use_parallel_residual": True}, SHARED),
]


@pytest.mark.parametrize(("name", "switch", "equation"), SWITCHES)
def test_a_switch_of_the_config_is_seen(name: str, switch: dict[str, Any], equation: str) -> None:
    found = read(name, num_hidden_layers=2, **switch)
    assert found.main is not None
    assert {layer.equation for layer in found.main.layers} == {parse(equation).block}, str(found)


@pytest.mark.parametrize("switch", [False, True])
def test_a_norm_of_queries_and_keys_is_a_fact_of_attention(switch: bool) -> None:
    found = read("StableLmForCausalLM", num_hidden_layers=2, qk_layernorm=switch)
    assert found.main is not None
    assert {layer.equation for layer in found.main.layers} == {SERIES}
    kinds = {b.details["qk_norm"] for layer in found.main.layers for b in layer.branches if b.op == "attn"}
    assert kinds == {"head" if switch else "none"}
