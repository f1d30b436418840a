"""What models of pictures have and models of text do not: channels first, stages, class tokens, pools, mixers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sublayer.audit import audit
from sublayer.audit.axes import CHANNELS, PLACES, UNKNOWN, of_input
from sublayer.audit.flow import Flow
from sublayer.audit.inputs import Inputs
from sublayer.audit.result import Audit
from sublayer.audit.trace import trace
from tests.audit import pictures as p

INPUT_NORM = "x = x + attn(norm(x)); x = x + ffn(norm(x))"
MIXER = "x = x + mixer(norm(x)); x = x + ffn(norm(x))"


def read(model: nn.Module) -> Audit:
    return audit(model, inputs=torch.zeros(2, 3, 4 * p.SIDE, 4 * p.SIDE))


def equations(model: nn.Module) -> list[str]:
    """Those of all layers of a model with one stack and nothing wrong."""
    found = read(model)
    assert len(found.stacks) == 1, str(found)
    assert found.design is not None, str(found)
    assert not [f for f in found.findings if f.severity != "note" and f.rule != "no-final-norm"]
    return [layer.equation for layer in found.stacks[0].layers]


def twice(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    return make(), make()


def facts(model: nn.Module, op: str) -> dict[str, object]:
    return next(dict(b.details) for b in read(model).stacks[-1].layers[0].branches if b.op == op)


GRIDS = [
    ("attention", lambda: p.grid(p.ConvAttention()), INPUT_NORM),
    ("a norm by permute", lambda: p.grid(p.ConvAttention(), norm=p.MovedNorm), INPUT_NORM),
    ("a cross-covariance of channels", lambda: p.grid(p.ConvAttention(over="channels")), MIXER),
    ("a convolution over places", lambda: p.grid(nn.Conv2d(p.WIDTH, p.WIDTH, 3, padding=1)), MIXER),
    ("a pool", lambda: p.grid(nn.AvgPool2d(3, 1, 1)), MIXER),
    (
        "a convolution inside the FFN",
        lambda: p.grid(p.ConvAttention(), p.conv_mlp(deep=True)),
        "x = x + attn(norm(x)); x = x + mixer(norm(x))",
    ),
    (
        "batch norms",
        lambda: p.grid(p.ConvAttention(), norm=nn.BatchNorm2d),
        "x = x + attn(op(x)); x = x + ffn(op(x))",
    ),
    (
        "a norm over channels and places",
        lambda: p.grid(p.ConvAttention(), norm=lambda n: nn.GroupNorm(1, n)),  # type: ignore[arg-type]
        "x = x + attn(op(x)); x = x + ffn(op(x))",
    ),
    (
        "squeeze and excite inside a sub-layer",
        lambda: p.grid(nn.Sequential(p.conv_mlp(), p.Squeezed(), nn.Conv2d(p.WIDTH, p.WIDTH, 1))),
        MIXER,
    ),
]


@pytest.mark.parametrize(("make", "equation"), [g[1:] for g in GRIDS], ids=[g[0] for g in GRIDS])
def test_channels_first(make: Callable[[], nn.Module], equation: str) -> None:
    found = read(p.Grid(*twice(make)))
    assert found.design is not None, str(found)
    assert [layer.equation for layer in found.stacks[0].layers] == [equation] * 2
    assert not [f for f in found.findings if f.severity == "error"]


def test_a_batch_norm_behind_a_matrix_is_a_part_of_it() -> None:
    def make() -> nn.Module:
        linear = [nn.Conv2d(p.WIDTH, p.WIDTH, 1), nn.BatchNorm2d(p.WIDTH)]
        return p.grid(p.ConvAttention(), nn.Sequential(*linear, nn.GELU(), nn.Conv2d(p.WIDTH, p.WIDTH, 1)))

    assert equations(p.Grid(*twice(make))) == [INPUT_NORM] * 2


class NormedStream(nn.Module):
    """The stream begins as a convolution's result and is read by a batch norm: two readers, two values."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.ffn = nn.BatchNorm2d(p.WIDTH), p.conv_mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.norm(x))


def test_a_batch_norm_behind_a_stream_is_not() -> None:
    assert equations(p.Grid(NormedStream(), NormedStream())) == ["x = x + ffn(op(x))"] * 2


TOKENS = [
    ("a mean, then the norm", lambda: p.Block(p.ln(), p.TokenAttention(), p.ln(), p.mlp()), INPUT_NORM),
    ("shifted windows", lambda: p.Block(p.ln(), p.Shifted(), p.ln(), p.mlp()), INPUT_NORM),
    ("a matrix over positions", lambda: p.Block(p.ln(), p.OverPlaces(), p.ln(), p.mlp()), MIXER),
    ("an LSTM", lambda: p.Block(p.ln(), p.Recurrent(), p.ln(), p.mlp()), MIXER),
]


@pytest.mark.parametrize(("make", "equation"), [t[1:] for t in TOKENS], ids=[t[0] for t in TOKENS])
def test_tokens(make: Callable[[], nn.Module], equation: str) -> None:
    model = p.Tokens(*twice(make))
    assert equations(model) == [equation] * 2
    assert read(model).stacks[0].final == "x = norm(x)"


def test_no_norm_behind_the_mean_is_still_found() -> None:
    found = read(p.Tokens(*twice(lambda: p.Block(p.ln(), p.TokenAttention(), p.ln(), p.mlp())), norm=False))
    assert found.stacks[0].final == "x = x"
    assert [f.rule for f in found.findings if f.severity == "warning"] == ["no-final-norm"]


def test_heads_and_widths_of_channels_first() -> None:
    model = p.Grid(*twice(lambda: p.grid(p.ConvAttention())))
    attention, ffn = facts(model, "attn"), facts(model, "ffn")
    assert [attention[k] for k in ("heads", "head_dim", "output_projection")] == [p.HEADS, p.WIDTH // p.HEADS, True]
    assert (ffn["width"], ffn["activation"]) == (2 * p.WIDTH, "gelu")
    assert read(model).stacks[0].width == p.WIDTH


def test_heads_of_windows_are_not_counted_once_a_window() -> None:
    model = p.Tokens(*twice(lambda: p.Block(p.ln(), p.Shifted(), p.ln(), p.mlp())))
    assert (facts(model, "attn")["heads"], facts(model, "attn")["head_dim"]) == (p.HEADS, p.WIDTH // p.HEADS)


def test_heads_behind_an_axis_of_windows() -> None:
    model = p.Tokens(*twice(lambda: p.Block(p.ln(), p.Units(), p.ln(), p.mlp())))
    assert equations(model) == [INPUT_NORM] * 2
    assert (facts(model, "attn")["heads"], facts(model, "attn")["head_dim"]) == (p.HEADS, p.WIDTH // p.HEADS)


def test_a_head_of_two_matrices_behind_the_mean_and_the_norm() -> None:
    model = p.Tokens(*twice(lambda: p.Block(p.ln(), p.TokenAttention(), p.ln(), p.mlp())))
    model.head = nn.Sequential(nn.Linear(p.WIDTH, 16), nn.GELU(), nn.Linear(16, 5))  # type: ignore[assignment]
    assert read(model).stacks[0].final == "x = norm(x)"
    assert read(model).findings == ()


class PlaceGain(nn.Module):
    """A learned factor for each position: no scale of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.ffn = nn.Parameter(torch.ones(p.SIDE * p.SIDE, 1)), p.mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.ffn(x)


class ChannelGain(PlaceGain):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(p.WIDTH))


def test_a_factor_for_each_position_is_no_scale() -> None:
    assert equations(p.Tokens(ChannelGain(), ChannelGain())) == ["x = x + scale(ffn(x))"] * 2
    assert all("scale" not in e for e in equations(p.Tokens(PlaceGain(), PlaceGain())))


def test_stages_are_stacks_and_what_is_between_them_is_how_the_next_begins() -> None:
    found = read(p.Stages())
    assert [[layer.equation for layer in s.layers] for s in found.stacks] == [[INPUT_NORM] * 2, [INPUT_NORM] * 3]
    assert [(s.embed, s.final, s.width) for s in found.stacks] == [
        ("x = e", "x = x", p.WIDTH),
        ("x = op(norm(e))", "x = norm(x)", 2 * p.WIDTH),
    ]
    assert found.findings == ()


def test_a_pooled_skip() -> None:
    first, second = read(p.Tokens(p.PooledBlock(), p.PooledBlock())).stacks[0].layers
    assert first.equation == second.equation == "x = mixer(x) + attn(norm(x)); x = x + ffn(norm(x))"
    assert not [f for f in read(p.Tokens(p.PooledBlock(), p.PooledBlock())).findings if f.severity != "note"]


def test_a_class_token_that_alone_attends() -> None:
    model = p.Tokens(p.ClassBlock(), p.ClassBlock(), cls=True)
    assert equations(model) == [INPUT_NORM] * 2
    notes = {note for layer in read(model).stacks[0].layers for note in layer.notes}
    assert "1 of 37 positions change, the others pass as they are" in notes


def test_a_class_token_that_joins_late() -> None:
    found = read(p.LateClass())
    patches, late = found.stacks
    assert {layer.equation for layer in patches.layers} == {INPUT_NORM}
    # The patches are a second stream, which nothing changes: they are what the embedding gave.
    assert {layer.equation for layer in late.layers[1:]} == {"x = x + attn(norm(op(x, e))); x = x + ffn(norm(x))"}
    assert not [f for f in found.findings if f.severity != "note"]


def test_what_takes_the_rows_of_a_batch_together_is_not_named() -> None:
    found = read(p.Tokens(*twice(lambda: p.Block(p.ln(), p.AmongRows(), p.ln(), p.mlp()))))
    assert found.design is None
    assert "takes the rows of a batch together" in found.stacks[0].layers[0].unknown


# --- what runs along the axes ---------------------------------------------------------------------------------------


class Folded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # [2, 64, 3]
        x = x.reshape(2 * 4, 16, 3)  # windows among the rows
        return x.reshape(2, 64, 3).transpose(1, 2).reshape(2, 3, 8, 8)


def test_axes_are_followed_through_views() -> None:
    tape = trace(Folded(), Inputs((torch.zeros(2, 3, 8, 8),), {}, ("x",)))
    flow = Flow(tape, ("x",))
    axes = [flow.axes[v.index] for v in tape.values if v.index in flow.axes]
    assert all(UNKNOWN not in {role for axis in one for _, role in axis} for one in axes)
    assert ((2, "rows"), (4, PLACES)) in [one[0] for one in axes]
    assert axes[-1] == of_input((2, 3, 8, 8))
    assert (flow.channels(tape.values[-1]), flow.places(tape.values[-1])) == (3, 64)


def test_the_axis_of_a_pictures_channels() -> None:
    first, last = of_input((2, 3, 8, 8)) or (), of_input((2, 8, 8, 3)) or ()
    assert first[1] == last[3] == ((3, CHANNELS),)
    assert of_input((2, 8, 8)) is None
