"""Which parameter serves which place: norms by what they read and who reads them, across layers."""

import torch

from sublayer.hf.convert import Conversion, rewire
from sublayer.notation import parse
from tests.model.support import tiny, tokens


def _origin(conversion: Conversion) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {t.name.removeprefix("model."): (t.how, tuple(s.removeprefix("model.") for s in t.sources))
            for t in conversion.targets}  # fmt: skip


def test_post_norm_to_paf_keeps_the_second_norm_and_drops_the_first() -> None:
    found = rewire(tiny("post-norm"), "paf", batches=tokens())
    assert {t.how for t in found.targets} == {"kept"}
    origin = _origin(found)
    dropped = {s.name for s in found.sources if s.how == "dropped"}
    for layer in range(3):
        for leaf in ("weight", "bias"):
            assert origin[f"layers.{layer}.stream_norm.{leaf}"][1] == (f"layers.{layer}.stream_norm_2.{leaf}",)
            assert f"model.layers.{layer}.stream_norm.{leaf}" in dropped
    assert len(dropped) == 6
    assert found.verdict == "approximate"


def test_input_norms_take_the_norm_that_the_sub_layer_read_from_across_layers() -> None:
    old = tiny("bert")
    origin = _origin(rewire(old, "embed: x = e\nblock: x = x + attn(norm(x)); x = x + ffn(norm(x))"))
    assert origin["layers.0.attn_in_norm.weight"] == ("kept", ("embed_section.stream_norm.weight",))
    for layer in (1, 2):
        assert origin[f"layers.{layer}.attn_in_norm.weight"][1] == (f"layers.{layer - 1}.stream_norm_2.weight",)
    for layer in range(3):
        assert origin[f"layers.{layer}.ffn_in_norm.weight"][1] == (f"layers.{layer}.stream_norm.weight",)
    assert origin["final_section.stream_norm.weight"][1] == ("layers.2.stream_norm_2.weight",)


def test_text_without_embed_keeps_the_models_embed_section() -> None:
    old = tiny("bert")
    kept = rewire(old, "paf")
    assert kept.after.embed == "x = norm(e)"
    origin = _origin(kept)
    assert origin["embed_section.stream_norm.weight"] == ("kept", ("embed_section.stream_norm.weight",))
    assert rewire(old, "embed: x = e\nblock: x = norm(x + attn(x) + ffn(x))").after.embed == "x = e"
    assert rewire(old, parse("paf")).after == parse("paf")


def test_norms_that_belong_to_sub_layers_are_folded_where_the_stream_gets_a_norm() -> None:
    found = rewire(tiny("input-norm"), "paf")
    origin = _origin(found)
    assert origin["layers.1.attn.q_proj.weight"] == (
        "changed", ("layers.1.attn.q_proj.weight", "layers.1.attn_in_norm.weight"))  # fmt: skip
    assert origin["layers.1.stream_norm.weight"] == ("new", ())
    assert origin["layers.2.stream_norm.weight"] == ("kept", ("final_section.stream_norm.weight",))
    assert not [s for s in found.sources if s.how == "dropped"]
    norm = found.model.model.layers[0].stream_norm
    assert torch.equal(norm.weight, torch.ones(16))
    assert torch.equal(norm.bias, torch.zeros(16))


def test_new_norms_are_the_identity_and_new_sub_layers_add_nothing() -> None:
    found = rewire(tiny("post-norm"), "sandwich")
    layer = found.model.model.layers[0]
    assert torch.equal(layer.attn_out_norm.weight, torch.ones(16))
    grown = rewire(tiny("post-norm"), "macaron")
    new = {t.name: t.note for t in grown.targets if t.how == "new" and "down_proj" in t.name}
    assert len(new) == 6
    assert all(note == "0, so that the new sub-layer adds nothing yet" for note in new.values())
    gated = rewire(tiny("attention-only"), "x = x + attn(norm(x)) + gate(ffn(norm(x)))")
    assert gated.exact
    block = gated.model.model.layers[0]
    assert block.ffn_out_gate.weight.item() == 0
    assert block.ffn.down_proj.weight.abs().max() > 0


def test_other_kinds_of_norm_keep_the_weight_and_are_not_called_exact() -> None:
    old = tiny("input-norm")
    after = "x = x + attn(rmsnorm(x)); x = x + ffn(rmsnorm(x))\nfinal: x = rmsnorm(x)"
    found = rewire(old, after, batches=tokens())
    assert found.verdict == "approximate"
    assert _origin(found)["layers.0.attn_in_norm.weight"] == ("kept", ("layers.0.attn_in_norm.weight",))
    assert {s.name for s in found.sources if s.how == "dropped"} == {
        name for name, _ in old.named_parameters() if name.endswith("norm.bias")
    }
    back = rewire(found.model, "input-norm")
    assert {t.name for t in back.targets if t.how == "new"} == {
        name for name, _ in old.named_parameters() if name.endswith("norm.bias")
    }
    bare = tiny("x = x + attn(dyt(x))\nfinal: x = norm(x)", norm_affine=False)
    assert rewire(bare, "x = x + attn(norm(x))").proof == "none"
    named = rewire(old, "x = x + attn(layernorm(x)); x = x + ffn(layernorm(x))\nfinal: x = layernorm(x)")
    assert named.exact


def test_sub_layers_go_by_the_order_of_the_layer() -> None:
    """FFN, attention, FFN: the attention and the FFN after it are the old ones, the first FFN is new."""
    origin = _origin(rewire(tiny("post-norm"), "macaron"))
    for layer in range(3):
        assert origin[f"layers.{layer}.ffn.up_proj.weight"] == ("new", ())
        assert origin[f"layers.{layer}.ffn_2.up_proj.weight"] == ("kept", (f"layers.{layer}.ffn.up_proj.weight",))
    turned = _origin(rewire(tiny("post-norm"), "x = norm(x + ffn(x)); x = norm(x + attn(x))"))
    assert turned["layers.1.ffn.up_proj.weight"] == ("kept", ("layers.1.ffn.up_proj.weight",))
    assert turned["layers.1.attn.q_proj.weight"] == ("kept", ("layers.1.attn.q_proj.weight",))


def test_a_norm_of_the_stream_takes_that_of_the_stream_and_not_that_of_a_sub_layer() -> None:
    """Three norms of one value: two belong to sub-layers, one to the stream."""
    old = tiny("x = norm(x) + attn(norm(x)) + ffn(norm(x))")
    (stream,) = (s.name for s in old.config.wiring.blocks[0][1].sites if s.name.startswith("stream"))
    origin = _origin(rewire(old, "h = norm(x); x = h + attn(h) + ffn(h)"))
    (shared,) = {name for name in origin if name.startswith("layers.1.") and name.endswith("norm.weight")}
    assert origin[shared] == ("kept", (f"layers.1.{stream}.weight",))
