"""What torch.export makes of a model is read as the recorded run is; where the two differ, nothing is claimed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from sublayer.audit import Audit, audit, witness
from sublayer.audit.exported import NotComparable, export_tape
from sublayer.audit.inputs import Inputs
from sublayer.audit.read import _run, read_tape
from sublayer.audit.tape import Tape
from sublayer.audit.target import Target, open_target
from sublayer.model import SublayerConfig, SublayerForCausalLM

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OLD: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "bert": lambda: transformers.BertConfig(**SMALL),
    "gpt2": lambda: transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, **OLD),
    "gpt_neox parallel": lambda: transformers.GPTNeoXConfig(**SMALL),
    "gpt_neox series": lambda: transformers.GPTNeoXConfig(**SMALL, use_parallel_residual=False),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=2),
    "t5": lambda: transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **OLD),
    "albert": lambda: transformers.AlbertConfig(**SMALL, embedding_size=16),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4, num_key_value_heads=2),
    "mamba": lambda: transformers.MambaConfig(num_hidden_layers=2, hidden_size=32, **OLD),
    "modernbert": lambda: transformers.ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=2),
    "falcon": lambda: transformers.FalconConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, **OLD),
    "olmo2": lambda: transformers.Olmo2Config(**SMALL),
}


def both(target: Any, inputs: Any = None) -> tuple[Audit, Audit]:
    """The audit by the recorded run alone, and the one with the second witness."""
    opened = open_target(target, inputs)
    tape, used, _ = _run(opened)
    assert tape is not None
    alone = read_tape(tape, opened)
    return alone, witness.compared(alone, opened, used)


def agrees(target: Any, inputs: Any = None) -> Audit:
    alone, result = both(target, inputs)
    assert result.witness == "dispatch and export", result.assumptions
    for before, stack in zip(alone.stacks, result.stacks, strict=True):
        assert all(layer.equation for layer in before.layers), before.unknown
        assert f"torch.export agrees on all {len(stack.layers)} layers" in stack.notes, stack.unknown
        assert stack == replace(before, notes=stack.notes)
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_both_witnesses_read_the_same(family: str) -> None:
    agrees(FAMILIES[family]())


@pytest.mark.parametrize("name", ["post-norm", "gpt-j", "deepnorm", "mix-ln", "layerscale", "reversible"])
def test_both_read_our_own_models_the_same(name: str) -> None:
    config = SublayerConfig(design=name, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, vocab_size=64)
    with torch.device("meta"):
        model = SublayerForCausalLM(config)
    agrees(model)


def test_both_read_torch_s_own_encoder_the_same_and_leave_it_as_it_was() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True), 3, enable_nested_tensor=False
    )
    before = {name: (id(p), p.clone()) for name, p in model.state_dict(keep_vars=True).items()}
    attributes = [dict(m.__dict__) for m in model.modules()]
    agrees(model, torch.randn(2, 5, 32))
    for name, p in model.state_dict(keep_vars=True).items():
        assert id(p) == before[name][0]
        assert torch.equal(p, before[name][1])
    for m, kept in zip(model.modules(), attributes, strict=True):
        assert {k: id(v) for k, v in m.__dict__.items()} == {k: id(v) for k, v in kept.items()}
    assert model.training


class Layer(nn.Module):
    """Adds in place, calls an einsum, turns gradients off for a part."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Parameter(torch.randn(2 * width, width))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(True):
            y = torch.einsum("bth,hd->btd", torch.relu(self.inner(self.norm(x))), self.outer)
        y *= self.scale
        x = x.clone()
        x += y
        return x


class Stacked(nn.Module):
    """Two layers, one of them called twice."""

    def __init__(self, calls: int = 3) -> None:
        super().__init__()
        self.calls = calls
        self.layers = nn.ModuleList([Layer(16, 0.5), Layer(16, 0.5)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.layers, self.layers[0])[: self.calls]:
            x = layer(x)
        return x


def test_writes_composites_and_repeated_calls_are_followed() -> None:
    result = agrees(Stacked(), torch.randn(2, 5, 16))
    assert [layer.equation for layer in result.stacks[0].layers] == ["x = x + 0.5*ffn(norm(x))"] * 3


def test_calls_and_leaves_are_on_the_tape() -> None:
    model, x = Stacked(), torch.randn(2, 5, 16)
    tape = export_tape(open_target(model, x), Inputs((x,), {}, ("x",)))
    assert tape.witness == "export"
    assert all(tape.parameters.values())
    assert tape.inputs["x"].real is not None
    calls = [f for f in tape.frames if f.kind == "Layer"]
    assert [f.path for f in calls] == ["layers.0", "layers.1", "layers.0"]
    assert calls[0].module == calls[2].module == id(model.layers[0])
    assert [v.real for v in tape.values if v.name.endswith("scale")] == [torch.tensor(0.5)] * 2
    names = {v.name for v in tape.values}
    assert {"linear", "layer_norm"} <= names
    assert "einsum" not in names


def disputed(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tape], None]) -> Audit:
    """An audit where torch.export is made to say something else."""

    def changed(target: Target, inputs: Inputs) -> Tape:
        tape = export_tape(target, inputs)
        change(tape)
        return tape

    monkeypatch.setattr(witness, "export_tape", changed)
    model, x = Stacked(), torch.randn(2, 5, 16)
    return audit(model, inputs=x, verify=True)


def test_a_layer_that_is_read_differently_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tape: Tape) -> None:
        last = max(v.index for v in tape.values if v.name == "add_")
        tape.values[last].kwargs = {"alpha": 2}

    result = disputed(monkeypatch, change)
    assert result.witness == "dispatch and export"
    assert result.design is None
    stack = result.stacks[0]
    assert [layer.equation for layer in stack.layers] == ["x = x + 0.5*ffn(norm(x))"] * 2 + [""]
    last = stack.layers[2]
    assert last.design is None
    assert last.branches == last.norms == ()
    assert last.unknown == (
        "the two witnesses differ: dispatch reads 'x = x + 0.5*ffn(norm(x))', export reads 'x = x + ffn(norm(x))'"
    )
    assert stack.unknown.startswith("layer 2: the two witnesses differ")
    assert "agrees" not in str(result)
    assert "layer 2: unknown, because the two witnesses differ" in str(result)


def test_another_number_of_layers_leaves_nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(target: Target, inputs: Inputs) -> Tape:
        return export_tape(replace(target, module=Stacked(calls=2)), inputs)

    monkeypatch.setattr(witness, "export_tape", shorter)
    result = audit(Stacked(), inputs=torch.randn(2, 5, 16), verify=True)
    assert result.design is None
    assert not any(layer.equation for layer in result.stacks[0].layers)
    assert "dispatch reads 3 layers (model), export reads 2 layers (model)" in result.stacks[0].unknown


def test_another_norm_leaves_nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tape: Tape) -> None:
        for value in tape.values:
            if value.name == "layer_norm":
                value.name, value.args = "rms_norm", (*value.args[:3], 1e-5)

    result = disputed(monkeypatch, change)
    assert not any(layer.equation for layer in result.stacks[0].layers)
    assert "layernorm over 16 channels, export reads rmsnorm over 16 channels" in result.stacks[0].unknown


def test_a_failed_export_is_said_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Stacked):
        """Looks at a number that a fake tensor does not have."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 1.0 if x.sum().item() > 0 else x)

    model, x = Counted(), torch.ones(2, 5, 16)
    plain, result = both(model, x)
    assert result.witness == "dispatch"
    assert result.stacks == plain.stacks
    assert len(result.assumptions) == len(plain.assumptions) + 1
    assert result.assumptions[-1].startswith("torch.export could not trace this model: ")
    assert "\n" not in result.assumptions[-1]

    def refuse(target: Target, inputs: Inputs) -> Tape:
        raise NotComparable("its graph holds cond")

    monkeypatch.setattr(witness, "export_tape", refuse)
    _, result = both(Stacked(), x)
    assert result.assumptions == ("what torch.export made of this model could not be compared: its graph holds cond",)
