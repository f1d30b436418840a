"""Silent traps of the library below, each with a model that would fall into it."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sublayer.model import (
    SublayerConfig,
    SublayerForCausalLM,
    SublayerForMaskedLM,
    SublayerForSequenceClassification,
    SublayerModel,
)
from sublayer.model.config import NORMS
from tests.model.support import randomise, same, tiny, tiny_config, tokens

EVERY_NORM = "x = x + layernorm(attn(rmsnorm(x))); x = x + gate(scale(ffn(dyt(x))))"


def test_no_buffer_can_come_back_as_garbage(tmp_path: Path) -> None:
    """Trap 1: tables that are not saved, such as rotary angles, are undefined after loading. There are none."""
    model = tiny("residual", position_embedding="rotary")
    assert not list(model.buffers())
    model.save_pretrained(tmp_path)
    again = SublayerForCausalLM.from_pretrained(tmp_path)
    far = torch.tensor([[50, 1000]])
    assert torch.equal(again(tokens(1, 2), position_ids=far).logits, model(tokens(1, 2), position_ids=far).logits)


def test_missing_norms_are_ones_not_noise(tmp_path: Path) -> None:
    """Trap 2: a missing weight of a norm with an unexpected class name loads as about 1e-43."""
    tiny(EVERY_NORM).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    left_out = ("norm", "gate", "scale")
    kept = {name: w for name, w in load_file(file).items() if not any(word in name for word in left_out)}
    save_file(kept, file, metadata={"format": "pt"})
    model, info = SublayerForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    fresh = SublayerForCausalLM(model.config).state_dict()
    assert len(info["missing_keys"]) == 3 * (2 + 1 + 3 + 1 + 1) + 2
    for name in info["missing_keys"]:
        assert torch.equal(model.state_dict()[name], fresh[name]), name


@pytest.mark.parametrize("norm", NORMS)
def test_loaded_weights_are_not_initialised_again(norm: str, tmp_path: Path) -> None:
    """Trap 3: writing in place in ``_init_weights`` overwrites what was loaded, beside a weight that is missing."""
    model = tiny(EVERY_NORM, norm=norm)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    missing = ["model.layers.1.ffn.up_proj.bias", "model.layers.1.ffn_in_norm.weight"]
    save_file({n: w for n, w in stored.items() if n not in missing}, file, metadata={"format": "pt"})
    again, info = SublayerForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == missing
    for name, weight in stored.items():
        assert torch.equal(again.state_dict()[name], weight) is (name not in missing), name


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        (SublayerForCausalLM, "ForCausalLM"),
        (SublayerForMaskedLM, "ForMaskedLM"),
        (SublayerForSequenceClassification, "ForSequenceClassification"),
    ],
)
def test_each_head_has_the_loss_of_its_name(kind: type, loss: str) -> None:
    """Trap 4: a head whose class name says nothing gets the shifted loss of a causal model."""
    assert kind(tiny_config("input-norm")).loss_type == loss


def test_tying_is_a_setting_of_the_config(tmp_path: Path) -> None:
    """Trap 6: without the field, tie_word_embeddings=False is lost and the head comes back tied."""
    assert "tie_word_embeddings" in SublayerConfig.__dataclass_fields__
    tiny("input-norm", tie_word_embeddings=False).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    again = SublayerForCausalLM.from_pretrained(tmp_path)
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


def test_hidden_states_are_one_a_layer_and_the_stream_where_asked() -> None:
    """Trap 8: hidden_states[-1] is after the final section, unless config.tie_last_hidden_states is False."""
    model = tiny("input-norm", SublayerModel)
    output = model(tokens(), output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    model.config.tie_last_hidden_states = False
    stream = model(tokens(), output_hidden_states=True).hidden_states
    assert torch.equal(stream[1], output.hidden_states[1])
    assert not same(stream[-1], output.last_hidden_state, 1e-3)
    norm = model.final_section.stream_norm
    assert same(norm(stream[-1]), output.last_hidden_state)


@pytest.mark.parametrize(
    "design", ["residual", "embed: x = norm(e); r = e\nblock: a = attn(x); r = r + a; x = x + a + r"]
)
def test_hidden_states_are_the_stream_x(design: str) -> None:
    """Blocks that return several streams: x is the one that is shown, from the embed section on."""
    model = tiny(design, SublayerModel)
    hidden = model(tokens(), output_hidden_states=True).hidden_states
    assert len(hidden) == 4
    seen = {}
    with model.layers[0].tapped(lambda name, value: seen.setdefault(name, value)):
        model(tokens())
    assert torch.equal(hidden[0], seen["x"])
    assert torch.equal(hidden[1], seen[model.layers[0].section.outputs[0][1]])


def test_attentions_are_given_or_refused_never_empty() -> None:
    """Trap 9: under sdpa the tuple of attentions is silently empty."""
    model = tiny("x = x + attn(norm(x)) + dot(norm(x)); x = x + ffn(x)")
    with pytest.raises(ValueError, match=r"attn_implementation \('sdpa'\) keeps no attention weights.*'eager'"):
        model(tokens(), output_attentions=True)
    model.set_attn_implementation("eager")
    attentions = model(tokens(), output_attentions=True).attentions
    assert [a.shape for a in attentions] == [(2, 4, 7, 7), (2, 1, 7, 7)] * 3
    for weights in attentions:
        assert same(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert weights.triu(1).abs().max() == 0


def test_use_cache_false_in_a_saved_config_is_only_a_default(tmp_path: Path) -> None:
    """Trap 12: Trainer saves use_cache=False; a cache that is asked for still comes, and generation is the same."""
    model = tiny("residual", use_cache=False)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again(tokens()).past_key_values is None
    assert again(tokens(), use_cache=True).past_key_values.get_seq_length() == 7
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(tokens(), use_cache=True, **settings), again.generate(tokens(), **settings))


def test_the_order_of_registration_does_not_choose_the_weights() -> None:
    """Trap 13: with one generator for all, a module more or less shifts every weight drawn after it."""
    torch.manual_seed(0)
    plain = SublayerModel(tiny_config("input-norm")).state_dict()
    torch.manual_seed(0)
    more = SublayerModel(tiny_config("x = x + attn(norm(x)); x = x + ffn(norm(x)) + ffn(norm(dot(x)))")).state_dict()
    for name in plain:
        if name.startswith("layers") and ".ffn." in name:
            assert torch.equal(plain[name], more[name]), name


@pytest.mark.parametrize(
    ("kind", "causal", "other"),
    [(SublayerForCausalLM, False, "SublayerForMaskedLM"), (SublayerForMaskedLM, True, "SublayerForCausalLM")],
)
def test_a_head_that_contradicts_its_config_is_refused(kind: type, causal: bool, other: str) -> None:
    with pytest.raises(ValueError, match=rf"causal \({causal}\) must be {not causal} for {kind.__name__}.*{other}"):
        kind(tiny_config("input-norm", causal=causal))


def test_one_config_serves_heads_of_both_kinds() -> None:
    config = tiny_config("input-norm")
    causal, masked = SublayerForCausalLM(config), SublayerForMaskedLM(config)
    assert (causal.config.causal, masked.config.causal, config.causal) == (True, False, None)
    assert causal.model.config is causal.config
    assert SublayerModel(config).config.left_to_right


def test_the_backend_can_be_changed_and_is_used() -> None:
    model = tiny("input-norm")
    assert model._can_set_attn_implementation()
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        assert model.model.layers[0].attn.core.config._attn_implementation == backend


def test_the_classes_declare_what_they_can_do() -> None:
    model = SublayerForCausalLM(tiny_config("input-norm"))
    assert model.config_class is SublayerConfig
    assert model.base_model_prefix == "model"
    assert model.supports_gradient_checkpointing
    assert {"SublayerBlock"} <= set(model._no_split_modules)
    assert model._supports_sdpa
    assert model._supports_flash_attn
    assert model._supports_flex_attn
    assert model._supports_attention_backend
    assert model._can_compile_fullgraph
    assert SublayerForCausalLM._tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
    assert {"model", "lm_head"} == {name for name, _ in model.named_children()}
    assert {"embed_tokens", "layers"} <= {name for name, _ in model.model.named_children()}
    assert model.get_input_embeddings() is model.model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head


@pytest.mark.parametrize("act", ["gelu", "swiglu"])
def test_the_parallel_plan_names_every_projection_of_the_design(act: str) -> None:
    """Each rule of the tensor-parallel plan fits a layer, and no projection is left out."""
    design = "embed: x = norm(attn(e))\nblock: x = x + attn(norm(x)) + ffn(x); x = x + attn(norm(x))\nfinal: x = ffn(x)"
    model = tiny(design, SublayerModel, hidden_act=act)
    names = {re.sub(r"\.[0-9]+\.", ".*.", name) for name, _ in model.named_parameters() if name.endswith("proj.weight")}
    assert {n.removesuffix(".weight") for n in names} == set(model.config.base_model_tp_plan)
    assert model.config.base_model_tp_plan["layers.*.attn_2.o_proj"] == "rowwise"


def test_tuples_are_returned_where_asked() -> None:
    model = tiny("input-norm")
    randomise(model)
    assert isinstance(model(tokens(), return_dict=False), tuple)
