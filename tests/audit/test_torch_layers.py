"""PyTorch's own Transformer modules, in every form that their switches allow."""

from typing import Any

import pytest
import torch
from torch import nn

from sublayer import parse
from sublayer.audit import Audit, audit

SELF = {False: "x = norm(x + attn(x))", True: "x = x + attn(norm(x))"}
CROSS = {False: "x = norm(x + cross(x))", True: "x = x + cross(norm(x))"}
FFN = {False: "x = norm(x + ffn(x))", True: "x = x + ffn(norm(x))"}
ENCODER = {first: f"{SELF[first]}; {FFN[first]}" for first in (False, True)}
DECODER = {first: f"{SELF[first]}; {CROSS[first]}; {FFN[first]}" for first in (False, True)}
FORMS = [{"norm_first": first, "batch_first": batch} for first in (False, True) for batch in (False, True)]
IDS = ["post, length first", "post, batch first", "input norm, length first", "input norm, batch first"]
SIZES = [(64, 4, 128), (48, 6, 200), (32, 1, 32)]


def encoder_layer(form: dict[str, Any], d: int = 64, heads: int = 4, width: int = 128, **more: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(d, heads, width, **form, **more)


def decoder_layer(form: dict[str, Any], d: int = 64, heads: int = 4, width: int = 128, **more: Any) -> nn.Module:
    return nn.TransformerDecoderLayer(d, heads, width, **form, **more)


def encoder(form: dict[str, Any], depth: int = 3, norm: bool = False) -> nn.Module:
    end = nn.LayerNorm(64) if norm else None
    return nn.TransformerEncoder(encoder_layer(form), depth, norm=end, enable_nested_tensor=False)


def decoder(form: dict[str, Any], depth: int = 3, norm: bool = False) -> nn.Module:
    return nn.TransformerDecoder(decoder_layer(form), depth, norm=nn.LayerNorm(64) if norm else None)


def wired(found: Audit, block: str, depth: int, final: str = "x = x", stack: int = -1) -> None:
    """Assert what every layer and the whole stack are, and that nothing is wrong with them."""
    read = found.stacks[stack]
    assert read.unknown == ""
    assert len(read.layers) == depth
    assert {parse(layer.equation) for layer in read.layers} == {parse(block)}
    assert read.design == parse(f"embed: x = e\nblock: {block}\nfinal: {final}")
    assert not [f for f in found.findings if f.severity == "error"]


@pytest.mark.parametrize("form", FORMS, ids=IDS)
class TestForms:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("train", [False, True])
    def test_encoder_layer(self, form: dict[str, Any], size: tuple[int, int, int], train: bool) -> None:
        found = audit(encoder_layer(form, *size).train(train))
        wired(found, ENCODER[form["norm_first"]], 1)
        attn, ffn = found.stacks[0].layers[0].branches
        assert (attn.op, attn.details["heads"], attn.details["output_projection"]) == ("attn", size[1], True)
        assert (ffn.op, ffn.details["width"]) == ("ffn", size[2])

    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("train", [False, True])
    def test_decoder_layer(self, form: dict[str, Any], size: tuple[int, int, int], train: bool) -> None:
        found = audit(decoder_layer(form, *size).train(train))
        wired(found, DECODER[form["norm_first"]], 1)
        assert [b.op for b in found.stacks[0].layers[0].branches] == ["attn", "cross", "ffn"]

    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("depth", [1, 2, 3])
    def test_stacks(self, form: dict[str, Any], depth: int, norm: bool) -> None:
        final = "x = norm(x)" if norm else "x = x"
        wired(audit(encoder(form, depth, norm)), ENCODER[form["norm_first"]], depth, final)
        wired(audit(decoder(form, depth, norm)), DECODER[form["norm_first"]], depth, final)

    @pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
    def test_whole_transformer(self, form: dict[str, Any]) -> None:
        found = audit(nn.Transformer(64, 4, 2, 3, 128, **form))
        assert [stack.name for stack in found.stacks] == ["encoder", "decoder"]
        wired(found, ENCODER[form["norm_first"]], 2, "x = norm(x)", 0)
        wired(found, DECODER[form["norm_first"]], 3, "x = norm(x)", 1)

    def test_other_switches(self, form: dict[str, Any]) -> None:
        wanted = ENCODER[form["norm_first"]]
        wired(audit(encoder_layer(form, bias=False, activation="gelu", dropout=0.3)), wanted, 1)
        wired(audit(encoder_layer(form, layer_norm_eps=1e-3, dtype=torch.float64)), wanted, 1)
        # Frozen and in evaluation, which is when PyTorch takes its fused path.
        wired(audit(encoder_layer(form).eval().requires_grad_(False)), wanted, 1)


def test_fused_path_is_on_before_and_after() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    model = encoder(FORMS[1]).eval()
    audit(model)
    assert torch.backends.mha.get_fastpath_enabled()


def test_norm_of_other_kinds() -> None:
    layer = encoder_layer(FORMS[3])
    layer.norm1, layer.norm2 = nn.RMSNorm(64), nn.RMSNorm(64)
    found = audit(layer)
    assert found.stacks[0].norm == "rmsnorm"
    wired(found, ENCODER[True], 1)


def test_inputs_can_be_given() -> None:
    source, target = torch.randn(2, 9, 64), torch.randn(2, 5, 64)
    wired(audit(decoder(FORMS[1]), inputs=(target, source)), DECODER[False], 3)
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    found = audit(encoder(FORMS[3]), inputs={"src": source, "mask": mask, "is_causal": True})
    wired(found, ENCODER[True], 3)
