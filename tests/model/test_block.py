"""The block's code: compiled from the equation, visible, copyable, and open to probes."""

import copy
import inspect
import pickle
import traceback

import pytest
import torch

from sublayer.model import SublayerBlock, SublayerForCausalLM, SublayerModel
from sublayer.model.block import compile_forward
from sublayer.notation.code import forward_source
from tests.model.support import VARIED, same, tiny, tokens


def test_the_source_is_the_equation() -> None:
    block = tiny("post-norm", SublayerModel).layers[0]
    lines = ["x = self.stream_norm(x + self.attn(x, context))", "x = self.stream_norm_2(x + self.ffn(x))", "return x"]
    assert [line.strip() for line in block.source.splitlines()[1:]] == lines
    assert inspect.getsource(block.forward) == block.source
    assert block.source == forward_source(block.section)
    assert "x = norm(x + attn(x)); x = norm(x + ffn(x))" in repr(block)


def test_one_function_for_each_distinct_source() -> None:
    model = tiny("mix-ln", SublayerModel, num_hidden_layers=4)
    code = [block.forward.__code__ for block in model.layers]
    assert code[1] is code[2] is code[3]
    functions = {inspect.unwrap(block.forward).__code__ for block in model.layers}
    assert len(functions) == 2
    assert compile_forward(model.layers[1].source) is compile_forward(model.layers[2].source)


def test_a_traceback_shows_the_line_of_the_equation() -> None:
    model = tiny("post-norm", SublayerModel)
    model.layers[1].ffn.forward = lambda x: x[..., :3]
    with pytest.raises(RuntimeError) as caught:
        model(tokens())
    assert "x = self.stream_norm_2(x + self.ffn(x))" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("design", ["post-norm", "residual", "deepnorm"])
def test_copies_and_pickles_run_their_own_parameters(design: str) -> None:
    model = tiny(design)
    expected = model(tokens()).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(tokens()).logits, expected)
        assert other.model.layers[0].forward.__self__ is other.model.layers[0]
        with torch.no_grad():
            other.model.layers[0].ffn.up_proj.weight.zero_()
        assert not torch.equal(other(tokens()).logits, expected)
        assert torch.equal(model(tokens()).logits, expected)


def sections(model: SublayerModel) -> list[SublayerBlock]:
    return [model.embed_section, *model.layers, model.final_section]


@pytest.mark.parametrize("design", VARIED.values(), ids=VARIED)
def test_a_tap_sees_every_value_and_changes_nothing(design: str) -> None:
    # Parallel branches run one by one under a tap: the same numbers only where they did before.
    model = tiny(design, SublayerModel, fuse_parallel=False)
    plain = model(tokens()).last_hidden_state
    assert same(tiny(design, SublayerModel)(tokens()).last_hidden_state, plain)
    for part in sections(model):
        seen: dict[str, torch.Tensor] = {}
        with part.tapped(lambda name, value, seen=seen: seen.setdefault(name, value)):
            assert torch.equal(model(tokens()).last_hidden_state, plain)
        assert set(seen) == {*part.section.inputs, *(step.value for step in part.section.steps)}
        assert all(value.shape == plain.shape for value in seen.values())
    assert torch.equal(model(tokens()).last_hidden_state, plain)


def test_a_tapped_sum_is_the_sum_of_its_terms() -> None:
    model = tiny("deepnorm", SublayerModel)
    block = model.layers[2]
    seen: dict[str, torch.Tensor] = {}
    with block.tapped(lambda name, value: seen.setdefault(name, value)):
        model(tokens())
    assert len(block.section.sums) == 2
    for add in block.section.sums:
        total = sum(scalar.value(3, 3) * seen[term] for scalar, term in add.terms)
        assert same(total, seen[add.value])


def test_what_a_tap_returns_is_used() -> None:
    model = tiny("x = x + ffn(norm(x))\nfinal: x = x", SublayerModel, num_hidden_layers=1)
    ffn = next(
        step.value for step in model.layers[0].section.steps if getattr(step, "site", None) and step.site.op == "ffn"
    )
    with model.layers[0].tapped(lambda name, value: torch.zeros_like(value) if name == ffn else value):
        without = model(tokens())
    hidden = model(tokens(), output_hidden_states=True)
    assert torch.equal(without.last_hidden_state, hidden.hidden_states[0])
    assert not torch.equal(hidden.last_hidden_state, hidden.hidden_states[0])


def test_the_plain_forward_is_back_after_an_exception() -> None:
    model = tiny("post-norm", SublayerModel)
    plain, block = model(tokens()).last_hidden_state, model.layers[1]
    forward = block.forward

    def fail(name: str, value: torch.Tensor) -> torch.Tensor:
        raise KeyError(name)

    with pytest.raises(KeyError), block.tapped(fail):
        model(tokens())
    assert block.forward is forward
    assert not hasattr(block, "tap")
    assert torch.equal(model(tokens()).last_hidden_state, plain)


def test_a_tap_leaves_gradient_checkpointing_as_it_was() -> None:
    model = tiny("post-norm", SublayerForCausalLM)
    model.activation_checkpointing_enable()
    model.train()
    with model.model.layers[0].tapped(lambda name, value: value):
        model(tokens(), labels=tokens()).loss.backward()
    assert model.model.layers[0].gradient_checkpointing
    assert inspect.getsource(model.model.layers[0].forward) == model.model.layers[0].source


def test_scalars_use_the_place_of_the_layer() -> None:
    model = tiny(
        "block: x = layer*x/depth\nfinal: x = x", SublayerModel, num_hidden_layers=3, position_embedding="none"
    )
    expected = model.embed_tokens(tokens()) * (1 * 2 * 3) / 3**3
    assert same(model(tokens()).last_hidden_state, expected)
