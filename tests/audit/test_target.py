"""What a target may be, how it is built without weights, and what it is fed."""

import json
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from sublayer.audit.configs import deepened
from sublayer.audit.defaults import candidates
from sublayer.audit.inputs import attempts
from sublayer.audit.result import AuditError
from sublayer.audit.target import Target, open_target, undisturbed, unwrap
from sublayer.audit.trace import trace

SMALL = LlamaConfig(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


class OneFile(nn.Module):
    """A GPT as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(65, 32)
        self.wpe = nn.Embedding(16, 32)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2))
        self.head = nn.Linear(32, 65)

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def runs(target: Target) -> int:
    """Index of the first attempt that runs."""
    for i, inputs in enumerate(target.attempts):
        try:
            trace(target.module, inputs)
        except Exception:
            continue
        return i
    raise AssertionError(f"no attempt of {len(target.attempts)} runs")


# --- what a target may be -------------------------------------------------------------------------------------------


def test_a_config_is_built_on_meta_and_left_as_it_was() -> None:
    before = SMALL.to_dict()
    target = open_target(SMALL)
    assert isinstance(target.module, LlamaForCausalLM)
    assert {p.device.type for p in target.module.parameters()} == {"meta"}
    assert not target.module.training
    assert SMALL.to_dict() == before
    assert runs(target) == 0


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_path_needs_only_the_config(tmp_path: Any, as_folder: bool) -> None:
    SMALL.save_pretrained(tmp_path)
    path = tmp_path if as_folder else tmp_path / "config.json"
    for form in (path, str(path)):
        target = open_target(form)
        assert target.name == str(path)
        assert isinstance(target.module, LlamaForCausalLM)


def test_the_class_that_the_config_names_is_built(tmp_path: Any) -> None:
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, architectures=["BertModel"]).save_pretrained(
        tmp_path
    )
    assert type(open_target(tmp_path).module).__name__ == "BertModel"


def test_a_callable_by_name_from_the_working_directory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_here.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            def make():
                return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

            class Shop:
                number = 3
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    target = open_target("made_here:make")
    assert {p.device.type for p in target.module.parameters()} == {"meta"}
    assert sys.path == before
    assert runs(target) == 0
    with pytest.raises(AuditError, match="is a int"):
        open_target("made_here:Shop.number")
    with pytest.raises(AuditError, match="importable"):
        open_target("made_here:missing")
    with pytest.raises(AuditError, match="importable"):
        open_target("no_such_package.at_all:make")


def test_a_callable_that_refuses_meta_is_called_plainly() -> None:
    def make() -> nn.Module:
        if torch.zeros(1).sum().item() != 0:  # fails on meta
            raise AssertionError
        return nn.Linear(3, 3)

    assert next(open_target(make).module.parameters()).device.type == "cpu"
    with pytest.raises(AuditError, match="raised KeyError"):
        open_target(lambda: {}["x"])
    with pytest.raises(AuditError, match="returned a int"):
        open_target(lambda: 3)


def test_wrappers_are_taken_off() -> None:
    model = OneFile()
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model
    assert unwrap(torch.compile(nn.DataParallel(model))) is model
    assert open_target(nn.DataParallel(model)).name == "OneFile"


def test_a_checkpoint_of_a_package_that_declares_its_model_type(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "declared-elsewhere"}))
    (tmp_path / "declaring_package.py").write_text(
        textwrap.dedent(
            """
            from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

            class Config(LlamaConfig):
                model_type = "declared-elsewhere"

            class Model(LlamaForCausalLM):
                config_class = Config

            AutoConfig.register("declared-elsewhere", Config)
            AutoModelForCausalLM.register(Config, Model)
            """
        )
    )
    with pytest.raises(AuditError, match=r"code of a checkpoint is never run"):
        open_target(tmp_path)
    info = tmp_path / "declaring_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: declaring-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sublayer.architectures]\ndeclared-elsewhere = declaring_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(open_target(tmp_path).module).__name__ == "Model"


def test_code_of_a_checkpoint_is_not_run(tmp_path: Any) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}})
    )
    with pytest.raises(AuditError, match="never run"):
        open_target(tmp_path)


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        "{}",
        '{"model_type": 3}',
        '{"model_type": "no-such-type"}',
        '{"model_type": "llama", "hidden_size": -4}',
        '{"model_type": "llama", "hidden_size": "many"}',
        '{"model_type": "llama", "num_hidden_layers": 1000000000}',
        '{"model_type": "llama", "num_hidden_layers": -3}',
        '{"model_type": "llama", "hidden_size": 1000000000000000000}',
        '{"model_type": "llama", "num_attention_heads": 0}',
        '{"model_type": "llama", "hidden_act": "no-such-activation"}',
        '{"model_type": "llama", "architectures": ["BertModel"]}',
        '{"model_type": "gpt2", "n_head": 5}',
        "[" * 100_000,
        "\x00\x01",
    ],
)
def test_a_bad_config_is_one_error(tmp_path: Any, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(AuditError) as caught:
        open_target(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "target", ["", " ", "./none", "/none/config.json", "none.json", "a/b/c", "a\0b", "x y", 3, None, [1], b"x"]
)
def test_nonsense_is_one_error(target: Any) -> None:
    with pytest.raises(AuditError):
        open_target(target)


def test_a_folder_without_a_config(tmp_path: Any) -> None:
    with pytest.raises(AuditError, match="holds none"):
        open_target(tmp_path)


def test_a_model_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AuditError, match="local folder"):
        open_target("sublayer-tests/no-such-model")


@pytest.mark.parametrize("inputs", [3, "text", {}, [], (1, 2)])
def test_inputs_without_a_tensor(inputs: Any) -> None:
    with pytest.raises(AuditError, match="inputs must"):
        open_target(OneFile(), inputs)


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_ids_mean_nothing_special_and_the_mask_hides_one_token() -> None:
    config = GPT2Config(
        vocab_size=40, n_layer=1, n_embd=13, n_head=1, eos_token_id=[7, 8], bos_token_id=9, pad_token_id=10
    )
    first = open_target(config).attempts[0]
    ids = first.kwargs["input_ids"]
    assert ids.device.type == "cpu"
    assert ids.shape == (2, 17)  # 13 is the width
    assert not set(ids.flatten().tolist()) & {7, 8, 9, 10}
    assert ids.max() < 40
    assert first.main == ("input_ids",)
    assert first.kwargs["attention_mask"].sum() == 33
    assert first.kwargs["use_cache"] is False
    again = open_target(config).attempts[0].kwargs["input_ids"]
    assert torch.equal(ids, again)


def test_encoder_and_decoder_get_different_lengths() -> None:
    config = T5Config(d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, vocab_size=50)
    target = open_target(config)
    assert isinstance(target.module, T5ForConditionalGeneration)
    first = target.attempts[0]
    assert first.main == ("input_ids", "decoder_input_ids")
    assert first.kwargs["input_ids"].shape[1] != first.kwargs["decoder_input_ids"].shape[1]
    assert runs(target) == 0


def test_images_have_the_size_that_the_config_says() -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=48, patch_size=16
    )
    target = open_target(ViTForImageClassification(config))
    assert target.attempts[0].main == ("pixel_values",)
    assert target.attempts[0].kwargs["pixel_values"].shape == (2, 3, 48, 48)
    assert runs(target) == 0


def test_a_gpt_in_one_file() -> None:
    target = open_target(OneFile())
    assert target.attempts[0].main == ("idx",)
    assert target.attempts[0].args[0].dtype == torch.long
    assert target.rebuild is None
    assert runs(target) == 0


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_layers_of_torch(layer: Any, batch_first: bool) -> None:
    target = open_target(layer(32, 4, 64, batch_first=batch_first))
    first = target.attempts[0]
    assert first.args[0].shape == ((2, 13, 32) if batch_first else (13, 2, 32))
    assert first.main == (("tgt", "memory") if layer is nn.TransformerDecoderLayer else ("src",))
    assert runs(target) == 0


def test_a_convolution_first_gets_an_image() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.Flatten(2), nn.Linear(49, 8))
    model.img_size = 28  # type: ignore[assignment]
    target = open_target(model)
    assert target.attempts[0].args[0].shape == (2, 1, 28, 28)
    assert runs(target) == 0


def test_the_users_inputs_win() -> None:
    ids = torch.tensor([[5, 6, 7]])
    for given in (ids, (ids,), [ids], {"idx": ids}):
        (only,) = open_target(OneFile(), given).attempts
        assert only.main == ("idx",)
    masked = open_target(
        GPT2LMHeadModel(GPT2Config(n_layer=1)), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    )
    assert masked.attempts[0].main == ("input_ids",)


# --- depth, and leaving no trace -------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False])
def test_rebuild_changes_the_depth(live: bool) -> None:
    target = open_target(LlamaForCausalLM(SMALL) if live else SMALL)
    assert target.rebuild is not None
    deeper: Any = target.rebuild(5)
    assert len(deeper.model.layers) == 5
    assert {p.device.type for p in deeper.parameters()} == {"meta"}
    assert SMALL.num_hidden_layers == 2


def test_lists_with_an_entry_a_layer_follow_the_depth() -> None:
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(num_hidden_layers=6)
    assert len(deepened(config, 9).layer_types) == 9
    assert len(deepened(config, 2).layer_types) == 2
    assert deepened(T5Config(num_layers=2), 7).num_decoder_layers == 7
    with pytest.raises(AuditError, match="none"):
        deepened(type(SMALL).__mro__[1](), 3)


def test_a_live_model_is_left_as_it_was() -> None:
    model = LlamaForCausalLM(SMALL).train()
    model.config._attn_implementation_internal = "flex_attention"
    before = {id(m): sorted(m.__dict__) for m in model.modules()}
    with undisturbed(model):
        assert model.config._attn_implementation == "sdpa"
        assert model.config.use_cache is False
        model.model.cached = torch.empty(3, device="meta")  # type: ignore[assignment]
        model.model.rotary_emb.register_buffer("inv_freq", torch.empty(3, device="meta"))
    assert model.config._attn_implementation == "flex_attention"
    assert model.config.use_cache is True
    assert {id(m): sorted(m.__dict__) for m in model.modules()} == before
    assert model.model.rotary_emb.inv_freq.device.type == "cpu"


def test_the_biggest_llama_is_built_in_a_moment() -> None:
    config = LlamaConfig(
        hidden_size=16384,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        intermediate_size=53248,
        vocab_size=128256,
    )
    module = open_target(config).module
    assert sum(p.numel() for p in module.parameters()) > 405e9


def test_defaults_are_filled_in_by_rule_and_told() -> None:
    from transformers import NemotronConfig

    plain, filled = [pair for _, pair in zip(range(2), candidates(NemotronConfig), strict=False)]
    assert plain[1] == ()
    assert filled[1] == (f"num_key_value_heads = {filled[0].num_attention_heads}",)
    with pytest.raises(AuditError):
        open_target(plain[0])
    assert attempts(open_target(filled[0]).module, filled[0])
