"""The assertions for tests of models."""

import pytest

import sublayer as sl
from sublayer.notation import DesignError
from sublayer.testing import assert_same_wiring, assert_wiring
from tests.audit.made_up import LAYERNORM, RMSNORM, audit, with_layers

POST = "x = norm(x + attn(x)); x = norm(x + ffn(x))"
BERT = audit("bert", "Bert")


@pytest.mark.parametrize(
    "design",
    [
        POST,
        "# the same, said otherwise\nh = attn(x) + x\nx = norm(h); x = norm(ffn(x) + x)",
        f"block: {POST}",
        f"block[:3]: {POST}\nblock[3:]: {POST}",
        f"embed: x = norm(e)\nblock: {POST}",
        "bert",
        sl.parse("bert"),
    ],
)
def test_a_wiring_that_is_the_one(design: str | sl.Design) -> None:
    assert_wiring(BERT, design)


@pytest.mark.parametrize(
    ("design", "said"),
    [
        ("x = x + attn(norm(x)); x = x + ffn(norm(x))", "moved from their inputs to the sums"),
        (f"block: {POST}\nfinal: x = x", "the norm on the embedding is"),
        ("post-norm", "the norm on the embedding is new"),
        (sl.parse("post-norm"), "the norm on the embedding is new"),
        (f"block[:3]: {POST}\nblock[3:]: x = norm(x + attn(x) + ffn(x))", "layers 3-11:"),
    ],
)
def test_a_wiring_that_is_not(design: str | sl.Design, said: str) -> None:
    with pytest.raises(AssertionError) as error:
        assert_wiring(BERT, design)
    assert said in str(error.value)
    assert "Bert" in str(error.value)


def test_one_layer_that_differs_is_named() -> None:
    mixed = audit("block[:11]: x = x + attn(norm(x))\nblock[11:]: x = norm(x + attn(x))")
    with pytest.raises(AssertionError, match="layer 11:"):
        assert_wiring(mixed, "x = x + attn(norm(x))")


def test_unknown_fails() -> None:
    dark = with_layers(audit("input-norm"), range(3), equation="", design=None, unknown="it scans")
    for design in ("x = x + attn(norm(x)); x = x + ffn(norm(x))", "input-norm"):
        with pytest.raises(AssertionError, match="it scans"):
            assert_wiring(dark, design)
    with pytest.raises(AssertionError, match="it scans"):
        assert_same_wiring(dark, dark)


def test_nonsense_is_the_test_s_mistake() -> None:
    with pytest.raises(DesignError):
        assert_wiring(BERT, "x = atn(x)")
    with pytest.raises(DesignError, match="two designs"):
        assert_wiring(BERT, "pre-norm")


def test_same_wiring() -> None:
    assert_same_wiring(BERT, audit("bert", "Other"))
    assert_same_wiring(BERT, "bert")
    with pytest.raises(AssertionError, match="layernorm -> rmsnorm"):
        assert_same_wiring(audit("bert", norm=LAYERNORM), audit("bert", norm=RMSNORM))


def test_a_live_model() -> None:
    from torch import nn

    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    assert_wiring(model, POST)
    first = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    with pytest.raises(AssertionError, match="moved from the sums to their inputs"):
        assert_wiring(nn.TransformerEncoder(first, 3, enable_nested_tensor=False), POST)
