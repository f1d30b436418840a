"""What happens to a model outside its forward, and who else looks inside it, leaves fused branches exact."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from sublayer.model import SublayerForCausalLM, SublayerModel, fused
from tests.model.fused_support import MADE, alike, close, gradients, groups, pair, products
from tests.model.support import randomise, tiny, tokens

ONE_INPUT, ONE_OUTPUT = (16, 72), (40, 16)  # q, k, v and up: 3*16 + 24; attention context and activations: 16 + 24


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """For few tokens too, and with the output weights joined, so that each product shows by its shape."""
    monkeypatch.setattr(fused, "JOINED", {})
    monkeypatch.setattr(fused, "CONCATENATED", 0)


def is_fused(model: nn.Module, layers: int = 3) -> bool:
    found = products(model, tokens()).shapes
    assert {found[ONE_INPUT], found[ONE_OUTPUT]} <= {0, layers}
    return bool(found[ONE_INPUT] and found[ONE_OUTPUT])


def held(model: nn.Module) -> int:
    """Bytes of memory behind the parameters and what the groups keep, each piece of memory counted once."""
    placed = [whole for each in groups(model) for pair in each.wholes.values() for whole in pair if whole is not None]
    spans = [(whole.data_ptr(), whole.data_ptr() + whole.nbytes) for whole in placed]
    inside = [
        p for p in model.parameters() if any(a <= p.data_ptr() and p.data_ptr() + p.nbytes <= b for a, b in spans)
    ]
    outside = sum(p.nbytes for p in model.parameters()) - sum(p.nbytes for p in inside)
    return outside + sum(b - a for a, b in spans)


@pytest.mark.parametrize("design", ["paf", MADE["input-only"], MADE["two-inputs"]])
def test_there_is_no_second_copy_of_the_weights(design: str) -> None:
    model = tiny(design)
    assert any(each.wholes for each in groups(model))
    assert held(model) == sum(p.nbytes for p in model.parameters())
    for parameter in model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes  # each can be saved, shared and moved alone


def saved(parameter: Tensor) -> int:
    stream = io.BytesIO()
    torch.save(parameter, stream)
    return len(stream.getvalue())


def test_files_are_those_of_the_unfused_model(tmp_path: Path) -> None:
    together, apart = pair("paf")
    assert list(together.state_dict()) == list(apart.state_dict())
    assert [type(m) for m in together.modules()] == [type(m) for m in apart.modules()]
    together.save_pretrained(tmp_path / "a"), apart.save_pretrained(tmp_path / "b")
    name = "model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    one = together.model.layers[0].attn.q_proj.weight
    assert saved(one) == saved(nn.Parameter(one.detach().clone()))
    again = SublayerForCausalLM.from_pretrained(tmp_path / "b", fuse_parallel=True)
    assert is_fused(again)
    assert torch.equal(again(tokens()).logits, together(tokens()).logits)


def test_copies_moves_and_loads_are_fused_again() -> None:
    model = tiny("paf")
    expected = model(tokens()).logits
    other = tiny("paf", seed=5)
    other.load_state_dict(model.state_dict())
    assigned = tiny("paf", seed=5)
    assigned.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    emptied = tiny("paf").to("meta").to_empty(device="cpu")
    emptied.load_state_dict(model.state_dict())
    there_and_back = copy.deepcopy(model).double().float()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other, assigned, emptied, there_and_back]
    for each in copies:
        assert is_fused(each)
        assert torch.equal(each(tokens()).logits, expected)
        with torch.no_grad():
            each.model.layers[0].attn.v_proj.weight.zero_()
        assert not close(each(tokens()).logits, expected)
        assert torch.equal(model(tokens()).logits, expected)


def test_parameters_with_other_memory_run_apart_and_free_the_old() -> None:
    together, apart = pair("paf")
    for model in (together, apart):
        weight = model.model.layers[1].ffn.up_proj.weight
        weight.data = 2 * weight.data
    assert close(together(tokens()).logits, apart(tokens()).logits)
    assert products(together, tokens()).shapes[ONE_INPUT] == 2
    assert [len(each.wholes) for each in groups(together)] == [1, 0, 1]
    together.model.layers[1].place()
    assert is_fused(together)
    assert close(together(tokens()).logits, apart(tokens()).logits)


def test_weights_changed_before_their_gradient_is_taken_are_noticed() -> None:
    model = tiny("paf")
    loss = model(tokens(), labels=tokens()).loss
    with torch.no_grad():
        model.model.layers[1].ffn.up_proj.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("shared", [False, True])
def test_memory_that_others_hold_is_left_alone(shared: bool) -> None:
    model = tiny("paf", fuse_parallel=False)
    attention = model.model.layers[0].attn
    if shared:
        attention.q_proj.weight.share_memory_()
    else:
        attention.q_proj.weight.data = torch.randn(32, 16)[:16]  # a part of somebody's tensor
    address = attention.q_proj.weight.data_ptr()
    linears = (attention.q_proj, attention.k_proj)
    assert fused.place([linear.weight for linear in linears]) is None
    assert attention.q_proj.weight.data_ptr() == address
    assert fused.place([attention.k_proj.weight, attention.k_proj.weight]) is None


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = tiny("paf")
    assert not any(each.wholes for each in groups(model))
    assert model(tokens().to("meta")).logits.shape == (2, 7, 29)


@pytest.mark.parametrize(
    "name", ["attn", "attn.q_proj", "ffn.up_proj", "attn.o_proj", "ffn", "attn.core", "ffn.dropout"]
)
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_hooks_fire(name: str, kind: str) -> None:
    together, apart = pair("paf")
    calls: list[str] = []
    for model in (together, apart):
        getattr(model.model.layers[1].get_submodule(name), kind)(lambda *_: calls.append(name))
    assert close(together(tokens()).logits, apart(tokens()).logits)
    calls.clear()
    if kind == "register_full_backward_hook":
        alike(gradients(together), gradients(apart))
    else:
        together(tokens())
    assert calls
    found = products(together, tokens()).shapes  # the other layers, and what the hook does not concern, stay fused
    assert found[ONE_INPUT] == (2 if name in ("attn", "ffn", "attn.q_proj", "ffn.up_proj") else 3)
    assert found[ONE_OUTPUT] == (2 if name in ("attn", "ffn", "attn.o_proj", "ffn.dropout") else 3)


def test_what_a_hook_returns_is_used() -> None:
    together, apart = pair("paf")
    for model in (together, apart):
        model.model.layers[1].attn.register_forward_hook(lambda module, args, output: 0 * output)
    assert close(together(tokens()).logits, apart(tokens()).logits)
    assert not close(together(tokens()).logits, tiny("paf")(tokens()).logits)


def test_a_hook_on_all_modules_sees_all() -> None:
    model, seen = tiny("paf", SublayerModel), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.add(module))
    model(tokens())
    handle.remove()
    idle = {m for m in model.modules() if isinstance(m, nn.ModuleList)}
    assert seen == set(model.modules()) - idle


def test_attention_weights_can_be_asked_for() -> None:
    together, apart = pair("paf", attn_implementation="eager")
    found, plain = (model(tokens(), output_attentions=True).attentions for model in (together, apart))
    assert len(found) == 3
    assert all(close(left, right) for left, right in zip(found, plain, strict=True))
    assert is_fused(together)


class Doubled(nn.Linear):
    """Stands for a quantised or a split projection: the numbers of its weight are not the map."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("name", ["attn.k_proj", "ffn.down_proj"])
@pytest.mark.parametrize("how", ["class", "forward", "parametrized", "module"])
def test_a_projection_of_another_kind_runs_as_itself(name: str, how: str) -> None:
    together, apart = pair("paf")
    for model in (together, apart):
        owner = model.model.layers[1].get_submodule(name.split(".")[0])
        linear = getattr(owner, name.split(".")[1])
        if how == "class":
            linear.__class__ = Doubled
        elif how == "forward":
            linear.forward = lambda value, linear=linear: 2 * nn.functional.linear(value, linear.weight, linear.bias)
        elif how == "parametrized":
            torch.nn.utils.parametrizations.weight_norm(linear)
            with torch.no_grad():
                linear.parametrizations.weight.original0.mul_(1.5)
        else:
            setattr(owner, name.split(".")[1], nn.Sequential(linear, nn.Tanh()))
    assert close(together(tokens()).logits, apart(tokens()).logits)
    assert not close(together(tokens()).logits, tiny("paf")(tokens()).logits)
    assert alike(gradients(together), gradients(apart))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft still reads it
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["o_proj", "up_proj", "down_proj"], "all-linear"])
def test_with_lora(targets: Any) -> None:
    models = []
    for model in pair("paf"):
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
        randomise(adapted, seed=1)
        models.append(adapted.eval())
    together, apart = models
    assert close(together(input_ids=tokens()).logits, apart(input_ids=tokens()).logits)
    inputs = {"input_ids": tokens(), "labels": tokens()}
    for model in models:
        model.zero_grad()
        model(**inputs).loss.backward()
    left, right = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in models)
    assert right
    assert all("lora" in name for name in right)
    assert alike(left, right)
    merged = together.merge_and_unload()
    assert close(merged(tokens()).logits, apart(input_ids=tokens()).logits)
    assert merged.model.layers[0].attn.q_proj.__class__ is nn.Linear


def test_with_gradient_checkpointing() -> None:
    together, apart = pair("paf")
    right = gradients(apart)
    for reentrant in (False, True):
        together.activation_checkpointing_enable({"use_reentrant": reentrant})
        together.train()
        assert alike(gradients(together), right)


@pytest.mark.parametrize("design", ["paf", MADE["factors"], MADE["two-results"]])
def test_compiled_in_one_graph(design: str) -> None:
    together, apart = pair(design, num_hidden_layers=2)
    right = gradients(apart)
    torch._dynamo.reset()
    compiled = torch.compile(together, fullgraph=True, backend="aot_eager")
    left = gradients(compiled)
    assert alike({name.removeprefix("_orig_mod."): g for name, g in left.items()}, right)
    with torch.no_grad():
        assert close(compiled(tokens()).logits, apart(tokens()).logits)
    torch._dynamo.reset()


def test_exported() -> None:
    together, apart = pair("paf", SublayerModel, num_hidden_layers=1)
    inputs = {"input_ids": tokens(), "use_cache": False}
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            program = torch.export.export(together, (), inputs, strict=False)
        names = {spec.target for spec in program.graph_signature.input_specs if spec.target}
        assert names == set(apart.state_dict())
        assert close(program.module()(**inputs).last_hidden_state, apart(**inputs).last_hidden_state)


def test_under_ddp_and_fsdp(tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    _, apart = pair("paf")
    right, logits = gradients(apart), apart(tokens()).logits
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = tiny("paf")
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(input_ids=tokens(), labels=tokens()).loss.backward()
        assert alike({name: p.grad for name, p in model.named_parameters()}, right)
        assert is_fused(model)
        split = tiny("paf")
        for block in split.model.layers:
            fully_shard(block)
        fully_shard(split)
        for _ in range(2):
            left = gradients(split)
            assert alike({name: g.full_tensor() for name, g in left.items()}, right)
        assert close(split(tokens()).logits, logits)
        assert not any(each.wholes for each in groups(split))  # what FSDP has taken apart is not kept whole
    finally:
        torch.distributed.destroy_process_group()
