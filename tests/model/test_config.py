"""The config: types, rules, spelling, and the equation it stores."""

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from sublayer.model import SublayerConfig, SublayerModel
from sublayer.model.initialization import initial_scale
from sublayer.notation import DesignError, parse
from tests.model.support import tiny_config


def test_the_whole_equation_is_stored(tmp_path: Path) -> None:
    config = SublayerConfig(design="paf-bert")
    assert config.design == "embed: x = norm(e)\nblock: x = norm(x + attn(x) + ffn(x))"
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["design"] == config.design
    assert SublayerConfig.from_pretrained(tmp_path).wiring == parse("paf-bert")
    assert SublayerConfig(design=parse("paf-bert")).design == config.design
    config.design = "x=x  +attn( norm(x) )"
    assert config.design == "x = x + attn(norm(x))"


def test_every_setting_is_stored_also_where_it_is_the_default(tmp_path: Path) -> None:
    SublayerConfig().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    own = set(SublayerConfig.__annotations__) - {"model_type", "attribute_map", "base_model_fsdp_plan"}
    assert own <= set(stored)


def test_defaults_follow_the_sizes() -> None:
    config = SublayerConfig(hidden_size=48, num_attention_heads=6)
    assert (config.num_key_value_heads, config.head_dim, config.intermediate_size) == (6, 8, 192)
    assert config.sizes == (48, 6, 6, 8, 192)


@pytest.mark.parametrize("alias", ["layer_norm_eps", "rms_norm_eps"])
def test_norm_eps_has_two_other_names(alias: str) -> None:
    config = SublayerConfig(**{alias: 1e-3})
    assert config.norm_eps == 1e-3
    assert getattr(config, alias) == 1e-3
    assert alias not in config.to_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden_size": 130, "num_attention_heads": 4},
            r"hidden_size \(130\) must be divisible by num_attention_heads \(4\): use hidden_size 132 or 2 heads",
        ),
        (
            {"num_attention_heads": 12, "num_key_value_heads": 5},
            r"num_attention_heads \(12\) must be divisible by num_key_value_heads \(5\): use 4 key-value heads",
        ),
        (
            {"hidden_size": 36, "num_attention_heads": 12, "position_embedding": "rotary"},
            r"head_dim \(3\) must be even for rotary positions",
        ),
        ({"hidden_act": "swigul"}, r"hidden_act \('swigul'\) must be one of relu, .*\(nearest: swiglu\)"),
        ({"norm": "layer_norm"}, r"norm \('layer_norm'\) must be .*layernorm, rmsnorm, dyt \(nearest: layernorm\)"),
        ({"position_embedding": "rope"}, r"position_embedding \('rope'\) must be one of learned, rotary, none"),
        ({"init": "xavier"}, r"init \('xavier'\) must be one of normal, deepnorm"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers \(0\) must be at least 1"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob \(1.0\) must be at least 0 and below 1"),
        ({"norm_eps": 0.0}, r"norm_eps \(0.0\) must be positive"),
        ({"hiden_size": 64}, r"hiden_size is not a setting of SublayerConfig \(nearest: hidden_size\)"),
        ({"rope_scaling": {}}, r"rope_scaling is not a setting of SublayerConfig"),
    ],
)
def test_a_broken_rule_is_named_with_the_value_and_the_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SublayerConfig(**settings)


@pytest.mark.parametrize(
    "settings", [{"hidden_size": "128"}, {"qk_norm": 1}, {"num_hidden_layers": 2.0}, {"causal": "yes"}, {"design": 3}]
)
def test_types_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(settings))):
        SublayerConfig(**settings)


def test_types_are_checked_on_assignment_and_rules_before_saving(tmp_path: Path) -> None:
    config = SublayerConfig()
    with pytest.raises(StrictDataclassFieldValidationError):
        config.hidden_size = "128"
    config.norm = "batchnorm"
    with pytest.raises(StrictDataclassClassValidationError, match="batchnorm"):
        config.save_pretrained(tmp_path)


def test_whole_numbers_are_welcome_where_fractions_are() -> None:
    config = SublayerConfig(hidden_dropout_prob=0, attention_probs_dropout_prob=0, rope_theta=500000, gate_init=1)
    assert config.rope_theta == 500000


def test_an_unknown_stored_key_is_reported_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sublayer", "hidden_siz": 3, "vocab_size": 7}))
    import transformers

    transformers.utils.logging.enable_propagation()
    try:
        config = SublayerConfig.from_pretrained(tmp_path)
    finally:
        transformers.utils.logging.disable_propagation()
    assert "'hidden_siz' is unknown (nearest: hidden_size); it is ignored" in caplog.text
    assert config.vocab_size == 7
    assert not hasattr(config, "hidden_siz")


def test_what_transformers_passes_is_accepted() -> None:
    config = SublayerConfig(
        num_labels=3, torch_dtype="float32", output_attentions=False, name_or_path="here", max_length=9
    )
    assert config.num_labels == 3


def test_a_config_survives_a_round_trip() -> None:
    config = tiny_config("residual", causal=False, init="deepnorm", init_seed=7, eos_token_id=[1, 2], scale_init=0.5)
    again = SublayerConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("design", ["x = x + atn(x)", "pre-norm", ""])
def test_a_bad_design_is_a_design_error(design: str) -> None:
    with pytest.raises(DesignError):
        SublayerConfig(design=design)


def test_ranges_must_tile_the_depth() -> None:
    design = "block[:4]: x = x + ffn(x)\nblock[4:]: x = x + attn(x)"
    assert SublayerConfig(design=design, num_hidden_layers=6).num_hidden_layers == 6
    with pytest.raises(DesignError, match="tile"):
        SublayerConfig(design=design, num_hidden_layers=3)


@pytest.mark.parametrize("op", ["cross", "moe", "mixer", "op"])
def test_operators_that_can_be_written_but_not_built_say_so(op: str) -> None:
    config = tiny_config(f"x = x + {op}(norm(x))")
    with pytest.raises(
        DesignError, match=rf"a model can be built from attn, dot, ffn.*'{op}'(.|\n)*\^(.|\n)*in place of it"
    ):
        SublayerModel(config)


@pytest.mark.parametrize(("depth", "start"), [(18, 0.1), (24, 1e-5), (25, 1e-6)])
def test_layerscale_starts_by_depth_unless_told(depth: int, start: float) -> None:
    assert initial_scale(SublayerConfig(num_hidden_layers=depth)) == start
    assert initial_scale(SublayerConfig(num_hidden_layers=depth, scale_init=0.3)) == 0.3
