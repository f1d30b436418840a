"""Models equal blocks written out by hand, in output and in gradients; and the test can tell wirings apart."""

from contextlib import suppress
from itertools import combinations

import pytest
import torch
from torch import Tensor

from sublayer.model import SublayerModel
from tests.model.reference import WIRINGS, Wiring, run
from tests.model.support import same, tiny, tokens

NORMS = ("norm", "norm_2", "norm_3")


def prepared(name: str, causal: bool = True) -> tuple[Wiring, SublayerModel, dict[str, Tensor], Tensor, Tensor]:
    """A randomised model of the wiring, its parameters, token ids and their embeddings."""
    wiring = WIRINGS[name]
    model = tiny(wiring.design, SublayerModel, num_hidden_layers=wiring.depth, causal=causal)
    parameters = dict(model.named_parameters())
    ids = tokens()
    places = parameters["embed_positions.weight"][: ids.shape[1]]
    return wiring, model, parameters, ids, parameters["embed_tokens.weight"][ids] + places


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", WIRINGS)
def test_output_and_gradients_equal_the_hand_written_block(name: str, causal: bool) -> None:
    wiring, model, parameters, ids, embedded = prepared(name, causal)
    hidden = model(ids).last_hidden_state
    expected = run(wiring, parameters, embedded, causal=causal)
    assert same(hidden, expected)

    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((hidden * direction).sum(), list(parameters.values()))
    want = torch.autograd.grad((expected * direction).sum(), list(parameters.values()))
    for parameter, left, right in zip(parameters, got, want, strict=True):
        assert same(left, right), f"gradient of {parameter}"
        # A bias that all keys share shifts every score alike and has no gradient; every other parameter must count.
        assert parameter.endswith("k_proj.bias") or right.abs().max() > 1e-6, f"{parameter} has no influence"


def norm_sites(parameters: dict[str, Tensor], layer: int) -> list[str]:
    """Names of the layer's norms that have a weight and a bias."""
    prefix = f"layers.{layer}."
    sites = {n.split(".")[2] for n in parameters if n.startswith(prefix) and n.endswith("bias")}
    return sorted(s for s in sites if s.endswith(NORMS) and f"{prefix}{s}.alpha" not in parameters)


@pytest.mark.parametrize("name", WIRINGS)
def test_mutants_of_the_reference_are_told_apart(name: str) -> None:
    wiring, model, parameters, ids, embedded = prepared(name)
    mutants = {}
    with torch.no_grad():
        hidden = model(ids).last_hidden_state
        for norms in {tuple(norm_sites(parameters, layer)) for layer in range(wiring.depth)}:
            mutants |= {f"without {n}": run(wiring, parameters, embedded, skip=frozenset({n})) for n in norms}
            for a, b in combinations(norms, 2):
                mutants[f"{a} and {b} exchanged"] = run(wiring, parameters, embedded, swap={a: b, b: a})
                mutants[f"{a} in place of {b}"] = run(wiring, parameters, embedded, swap={b: a})
        if name == "parallel-one-norm":
            mutants["two norms for one"] = run(wiring, parameters, embedded, twice=True)
        # Every other wiring that this model's parameters suffice for: series for parallel, other places, other sums.
        for other, rewired in WIRINGS.items():
            if other != name and rewired.second_stream == wiring.second_stream:
                with suppress(KeyError):
                    mutants[other] = run(wiring, parameters, embedded, block=rewired.block)
    for mutant, output in mutants.items():
        assert not same(hidden, output, tolerance=1e-3), f"{name} cannot be told from {mutant}"


@pytest.mark.parametrize(
    ("design", "series", "parallel"),
    [
        ("input-norm", True, False),
        ("parallel-two-norms", False, True),
    ],
)
def test_series_and_parallel_are_told_apart_on_the_same_parameters(design: str, series: bool, parallel: bool) -> None:
    wiring, model, parameters, ids, embedded = prepared(design)
    hidden = model(ids).last_hidden_state
    assert same(hidden, run(wiring, parameters, embedded, block=WIRINGS["input-norm"].block)) is series
    assert same(hidden, run(wiring, parameters, embedded, block=WIRINGS["parallel-two-norms"].block)) is parallel


def test_there_are_mutants_of_every_kind() -> None:
    """Guards the test above: a wiring whose mutants all failed to compute would pass it."""
    wiring, _, parameters, _, embedded = prepared("post-norm")
    computable = []
    for other, rewired in WIRINGS.items():
        with suppress(KeyError, ValueError):
            run(wiring, parameters, embedded, block=rewired.block)
            computable.append(other)
    assert {"paf", "deepnorm", "b2t", "normed-residual"} <= set(computable)
    assert norm_sites(parameters, 0) == ["stream_norm", "stream_norm_2"]
