"""The forecast against real backward passes, exact path counts against an enumeration, and what it says in words."""

import json
import math
import time
from functools import lru_cache

import pytest
import torch

import sublayer as sl
from sublayer.audit.forecast import Forecast, forecast
from sublayer.audit.meanfield import Fresh
from sublayer.model import SublayerConfig, SublayerModel
from sublayer.notation import Design, DesignError

DESIGNS = (
    "post-norm",
    "input-norm",
    "output-norm",
    "sandwich",
    "deepnorm",
    "paf",
    "parallel-two-norms",
    "residual",
    "layernorm-scaling",
    "mix-ln",
)
WIDTH, TOKENS = 64, 64
STD = 0.02 * math.sqrt(768 / WIDTH)  # each matrix then has the gain that it has in GPT-2, 768 channels wide
GROWTH, GRADIENT = 1.5, 3.0  # the factors that the module's docstring promises


@lru_cache(maxsize=64)
def measured(design: str, depth: int, **changes: float) -> tuple[float, float, float]:
    """Growth, gradient ratio of the matrices and of the streams, in a real model with random tokens and readout."""
    settings = {"initializer_range": STD, "gate_init": 0.0, **changes}
    config = SublayerConfig(
        design=design,
        vocab_size=512,
        hidden_size=WIDTH,
        num_hidden_layers=depth,
        num_attention_heads=4,
        init_seed=0,
        use_cache=False,
        **settings,
    )
    model = SublayerModel(config)
    streams: list[tuple[torch.Tensor, ...]] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _m, _i, out: streams.append(out if isinstance(out, tuple) else (out,)))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 512, (4, TOKENS), generator=generator)
    hidden = model(ids).last_hidden_state
    for values in streams:
        for value in values:
            value.retain_grad()
    (hidden * torch.randn(hidden.shape, generator=generator)).sum().backward()

    def on_stream(values: tuple[torch.Tensor, ...]) -> float:
        return math.sqrt(sum(v.grad.square().mean().item() for v in values if v.grad is not None))

    def on_matrices(layer: torch.nn.Module) -> float:
        return math.sqrt(sum(p.grad.square().sum().item() for p in layer.parameters() if p.dim() == 2))

    first, last = (s[0].square().mean().sqrt().item() for s in (streams[0], streams[-1]))
    return (
        last / first,
        on_matrices(model.layers[0]) / on_matrices(model.layers[-1]),
        on_stream(streams[0]) / on_stream(streams[-1]),
    )


def foreseen(design: str, depth: int, **changes: float) -> tuple[float, float, float]:
    fresh = Fresh(**{"width": WIDTH, "std": STD, "tokens": TOKENS, **changes})  # type: ignore[arg-type]
    row = forecast(sl.parse(design), (depth,), fresh=fresh).depths[0]
    assert row.gradient is not None
    assert row.stream_gradient is not None
    return row.growth, row.gradient, row.stream_gradient


def apart(one: float, two: float) -> float:
    return max(one / two, two / one)


@pytest.mark.parametrize("depth", [12, 48])
@pytest.mark.parametrize("design", DESIGNS)
def test_forecast_agrees_with_a_backward_pass(design: str, depth: int) -> None:
    real, said = measured(design, depth), foreseen(design, depth)
    assert apart(real[0], said[0]) < GROWTH
    assert apart(real[1], said[1]) < GRADIENT
    assert apart(real[2], said[2]) < GRADIENT


@pytest.mark.parametrize("which", [0, 1, 2])
def test_designs_stand_in_the_right_order_at_48_layers(which: int) -> None:
    real = {d: measured(d, 48)[which] for d in DESIGNS}
    said = {d: foreseen(d, 48)[which] for d in DESIGNS}
    for one in DESIGNS:
        for two in DESIGNS:
            if real[one] > GRADIENT * real[two]:  # closer than that is within the tolerance of the forecast
                assert said[one] > said[two], (one, two)


@pytest.mark.parametrize("design", ["input-norm", "output-norm", "sandwich", "layernorm-scaling", "parallel-two-norms"])
def test_untouched_streams_agree_with_gain_one_matrices_too(design: str) -> None:
    std = WIDTH**-0.5
    real = measured(design, 48, initializer_range=std)
    said = foreseen(design, 48, std=std)
    assert apart(real[0], said[0]) < GROWTH
    assert apart(real[1], said[1]) < GRADIENT


def test_learned_factors_start_where_they_are_said_to() -> None:
    real, said = measured("gated-input-norm", 12, gate_init=0.5), foreseen("gated-input-norm", 12, gate=0.5)
    assert apart(real[0], said[0]) < GROWTH
    assert apart(real[1], said[1]) < GRADIENT
    # LayerScale's own rule: 0.1 at 12 layers, 1e-6 at 48, where the stream hardly changes.
    rows = forecast(sl.parse("layerscale"), (12, 48)).depths
    assert rows[1].growth == pytest.approx(1, abs=1e-3)
    assert rows[0].growth > rows[1].growth


@pytest.mark.parametrize(
    "design", ["reversible", "b2t", "macaron", "ladder-residual", "no-residual", "dot-input-norm", "keel"]
)
def test_other_wirings_agree_at_12_layers(design: str) -> None:
    real, said = measured(design, 12), foreseen(design, 12)
    assert apart(real[0], said[0]) < GROWTH
    assert apart(real[1], said[1]) < GRADIENT


def test_a_gate_at_zero_lets_no_gradient_through() -> None:
    row = forecast(sl.parse("rezero"), (12,)).depths[0]
    assert row.gradient is None
    assert row.growth == 1
    assert row.stream_gradient == 1
    assert "no gradient reaches the weights" in row.verdict


def test_gains_may_be_measured_ones() -> None:
    plain = forecast(sl.parse("input-norm"), (12,)).depths[0]
    small = forecast(sl.parse("input-norm"), (12,), branch_gains={"attn": 1e-6, "ffn": 1e-6}).depths[0]
    assert small.growth == pytest.approx(1, abs=1e-6)
    assert plain.growth > 2
    # A sub-layer of gain g on a normed stream adds g^2 to the mean square: with all positions alike, exactly.
    alike = Fresh(tokens=1, embedding=1.0, eps=1e-12)
    row = forecast(sl.parse("x = x + ffn(norm(x))"), (4,), fresh=alike, branch_gains={"ffn": 0.5}).depths[0]
    assert row.growth == pytest.approx(math.sqrt((1 + 4 * 0.25) / (1 + 0.25)), rel=1e-6)


def test_two_calls_of_one_sublayer_on_one_value_are_equal() -> None:
    once = Fresh(tokens=1, embedding=1.0, eps=1e-12)
    shared = forecast(
        sl.parse("x = x + ffn_a(norm(x)) + ffn_a(norm(x))"), (1, 2), fresh=once, branch_gains={"ffn": 1.0}
    ).depths[1]
    split = forecast(
        sl.parse("x = x + ffn(norm(x)) + ffn(norm(x))"), (1, 2), fresh=once, branch_gains={"ffn": 1.0}
    ).depths[1]
    assert shared.growth == pytest.approx(math.sqrt((1 + 2 * 4) / (1 + 4)), rel=1e-6)
    assert split.growth == pytest.approx(math.sqrt((1 + 2 * 2) / (1 + 2)), rel=1e-6)


@pytest.mark.parametrize(
    ("design", "depth", "untouched", "paths"),
    [
        ("post-norm", 3, 0, 4**3),
        ("input-norm", 3, 1, 4**3),
        ("parallel-two-norms", 3, 1, 3**3),
        ("paf", 3, 0, 3**3),
        ("no-residual", 3, 0, 1),
        ("mix-ln", 4, 0, 4**4),
        ("rezero", 5, 1, 4**5),
        ("deepnorm", 96, 0, 4**96),
        ("residual", 1, 1, 4 + 1 + 1 + 2),  # x: 4 ways; r: itself, a, and f by its 2 ways
        ("x = x + x*0.5 + attn(norm(x))", 3, 1, 2**3),  # 1.5*x is one term
        # Two layers: 4 ways to x through each, and to e directly, from the first layer by the 4 ways of the second.
        ("input-injection", 2, 3, 16 + 16 + 4),
    ],
)
def test_paths_are_counted_exactly(design: str, depth: int, untouched: int, paths: int) -> None:
    row = forecast(sl.parse(design), (depth,)).depths[0]
    assert row.untouched == untouched
    assert row.paths == paths


def test_depths_that_the_ranges_cannot_have_are_left_out() -> None:
    ranged = "block[:3]: x = norm(x + attn(x))\nblock[3:12]: x = x + attn(norm(x))"
    found = forecast(sl.parse(ranged), (12, 48))
    assert [row.depth for row in found.depths] == [12]
    assert found.skipped == (48,)
    assert "48 layers: " in str(found)
    with pytest.raises(DesignError, match="none of the depths 48"):
        forecast(sl.parse(ranged), (48,))


@pytest.mark.parametrize("name", [d.name for d in sl.designs()])
def test_every_named_design_has_a_forecast(name: str) -> None:
    found = forecast(sl.parse(name), (12, 48, 96))
    assert all(row.growth > 0 for row in found.depths)
    assert str(found).count("layers: ") == 3
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["depths"][2]["depth"] == 96


def test_operators_that_only_an_audit_prints_have_a_forecast() -> None:
    design = sl.parse(
        "x = x + attn(norm(x)); x = x + cross(norm(x)); x = x + mixer(norm(x)); x = x + moe(stop(norm(x)))"
    )
    rows = forecast(design, (12, 48)).depths
    assert 1 < rows[0].growth < rows[1].growth < 20


def test_the_verdict_names_what_is_wrong() -> None:
    def verdict(design: str, **fresh: float) -> str:
        return forecast(sl.parse(design), (96,), fresh=Fresh(**fresh)).depths[0].verdict  # type: ignore[arg-type]

    assert "of like size in all layers; the stream keeps its size; no path" in verdict("deepnorm")
    assert "the stream grows" in verdict("input-norm")
    assert "explodes" in verdict("no-norm", std=0.05)
    assert "uneven: the first layer gets" in verdict("no-residual")
    assert "the gradient vanishes" in verdict("x = norm(x + 2*cross(x))")
    assert "the stream shrinks" in verdict("block: x = 0.9*x + 0.1*ffn(x)\nfinal: x = x")


def test_it_is_quick() -> None:
    design: Design = sl.parse("sandwich")
    forecast(design, (2,))
    start = time.process_time()
    found: Forecast = forecast(design)
    assert time.process_time() - start < 0.5  # measured: 0.07 s with two busy cores
    assert [row.depth for row in found.depths] == [12, 48, 96]
