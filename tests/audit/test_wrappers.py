"""What stands around a model, or was done to it, does not change what is read; and an audit changes nothing in it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from sublayer import parse
from sublayer.audit import audit
from tests.audit.plain import GPT, WIDTH, Block, MinGPTAttention, before

pytestmark = [
    # transformers and peft are a version apart.
    pytest.mark.filterwarnings("ignore:.*will be removed in v6.*:FutureWarning"),
]

INPUT_NORM = parse("x = x + attn(norm(x)); x = x + ffn(norm(x))")
POST_NORM = parse("embed: x = norm(e)\nblock: x = norm(x + attn(x)); x = norm(x + ffn(x))")
SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def plain() -> nn.Module:
    return GPT(lambda i: Block(before, MinGPTAttention), lambda: nn.LayerNorm(WIDTH))


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2))


def bert() -> Any:
    return BertForMaskedLM(BertConfig(**SMALL))


def called(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model(torch.zeros(2, 7, dtype=torch.long))
    return model


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_blocks(model: Any) -> nn.Module:
    for i, block in enumerate(model.h):
        model.h[i] = torch.compile(block, backend="eager")
    return model


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def eager(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": eager,
    "compiled, called": lambda m: called(eager(m)),
    "compiled in place": compiled_in_place,
    "compiled in place, called": lambda m: called(compiled_in_place(m)),
    "compiled blocks": compiled_blocks,
    "compiled blocks, called": lambda m: called(compiled_blocks(m)),
    "data parallel": nn.DataParallel,
    "data parallel around compiled": lambda m: nn.DataParallel(eager(m)),
    "half": nn.Module.half,
    "bfloat16": nn.Module.bfloat16,
    "double": nn.Module.double,
    "copy": copy.deepcopy,
    "frozen": frozen,
    "training": nn.Module.train,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_changes_nothing(name: str) -> None:
    torch._dynamo.reset()
    bare, found = audit(plain()), audit(WRAPPERS[name](plain()))
    assert found.design == bare.design == INPUT_NORM
    # All but the names of modules, which are labels.
    assert repr(found.stacks).replace("._orig_mod", "") == repr(bare.stacks)
    assert found.findings == bare.findings
    assert not found.dead_parameters


def test_weights_on_the_meta_device_will_do() -> None:
    assert audit(plain().to("meta")).design == INPUT_NORM


def checkpointing(model: Any) -> Any:
    model.gradient_checkpointing_enable()
    return model.train()


def reentrant(model: Any) -> Any:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    return model.train()


def lora(model: Any, **more: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, **more))


def ia3(model: Any) -> Any:
    attention = ("k_proj", "v_proj") if isinstance(model, LlamaForCausalLM) else ("key", "value")
    last = "down_proj" if isinstance(model, LlamaForCausalLM) else "output.dense"
    return get_peft_model(model, IA3Config(target_modules=[*attention, last], feedforward_modules=[last]))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "gradient checkpointing": checkpointing,
    "reentrant checkpointing": reentrant,
    "lora": lora,
    "lora in training": lambda m: lora(m).train(),
    "lora with checkpointing": lambda m: lora(checkpointing(m)),
    "rank-stabilised lora": lambda m: lora(m, use_rslora=True),
    "dora": lambda m: lora(m, use_dora=True),
    "lora, merged": lambda m: lora(m).merge_and_unload(),
    "ia3": ia3,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(("make", "wanted"), [(llama, INPUT_NORM), (bert, POST_NORM)])
def test_fine_tuning_changes_no_wiring(name: str, make: Callable[[], Any], wanted: Any) -> None:
    found = audit(CHANGES[name](make()))
    assert found.design == wanted
    assert found.main is not None
    assert [b.op for layer in found.main.layers for b in layer.branches] == ["attn", "ffn"] * 2
    assert not [f for f in found.findings if f.severity == "error"]


def state(model: nn.Module) -> dict[str, Any]:
    """All that a user could notice."""
    modules = dict(model.named_modules())
    return {
        "training": {n: m.training for n, m in modules.items()},
        "hooks": {n: [len(v) for k, v in sorted(vars(m).items()) if k.endswith("_hooks")] for n, m in modules.items()},
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        "buffers": {n: (id(b), b.device, b.dtype) for n, b in model.named_buffers()},
        "parameters": {n: (id(p), p.requires_grad, p.grad) for n, p in model.named_parameters()},
        "rng": torch.get_rng_state().tolist(),
        "modes": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()),
    }


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.parametrize("make", [plain, llama, bert, encoder, lambda: lora(llama())])
@pytest.mark.parametrize("train", [False, True])
def test_an_audit_leaves_a_model_as_it_was(make: Callable[[], Any], train: bool) -> None:
    model = make().train(train)
    model.register_forward_hook(lambda m, args, output: None)
    data = torch.randn(2, 7, 32) if isinstance(model, nn.TransformerEncoder) else torch.randint(0, 50, (2, 7))

    def outputs() -> Any:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            result = model(data)
        return getattr(result, "logits", result)

    weights = {n: t.clone() for n, t in model.state_dict().items()}
    first, before_it = outputs(), state(model)
    once = audit(model)
    assert state(model) == before_it
    again = audit(model)
    assert state(model) == before_it
    assert once.stacks == again.stacks
    assert once.findings == again.findings
    torch.testing.assert_close(outputs(), first, rtol=0, atol=0)
    after_it = model.state_dict()
    assert after_it.keys() == weights.keys()
    assert all(torch.equal(after_it[n], t) for n, t in weights.items())
    # It still trains.
    result = model.train()(data)
    (result[0] if isinstance(result, tuple) else getattr(result, "logits", result)).sum().backward()
    assert any(p.grad is not None for p in model.parameters())


def test_a_model_can_be_audited_where_gradients_are_off() -> None:
    with torch.inference_mode():
        assert audit(plain()).design == INPUT_NORM
    with torch.no_grad():
        assert audit(plain()).design == INPUT_NORM
