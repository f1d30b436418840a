"""Any model: what the probe takes at every + against what hooks written by hand take, family by family."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

import sublayer as sl
from sublayer.probe import Probe, ProbeError, measures
from sublayer.probe import audited as audited_module
from sublayer.probe.places import Sight
from tests.probe.foreign import build, ids, padded


@contextmanager
def heard(model: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Module name -> (first positional tensor that it read, first tensor that it wrote)."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def listen(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            read = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            wrote = result[0] if isinstance(result, tuple) else result
            if read is not None and isinstance(wrote, Tensor):
                found[name] = (read, wrote)

        return hook

    handles = [m.register_forward_hook(listen(n), with_kwargs=True) for n, m in model.named_modules() if n]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def rows(x: Tensor, batch: Any) -> Tensor:
    """The tokens of a value, padding left out."""
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    flat = x.flatten(0, -2)
    return flat if mask is None else flat[mask.flatten().bool()]


Norm = Callable[[Tensor], Tensor]
Sum = tuple[str, str, Tensor, list[tuple[str, Tensor]], Norm | None]  # equation, kind of model, stream, terms, norm


def by_hand(name: str, model: Any, h: dict[str, tuple[Tensor, Tensor]]) -> list[Sum]:
    """The sums of each layer from what its modules read and wrote."""
    found: list[Sum] = []

    def add(equation: str, stream: Tensor, terms: list[tuple[str, Tensor]], norm: Norm | None = None) -> None:
        found.append((equation, name, stream, terms, norm))

    for i in range(3 if name not in ("vit",) else 2):
        if name == "bert":
            at = f"bert.encoder.layer.{i}"
            layer = model.bert.encoder.layer[i]
            x, y = h[at][0], h[f"{at}.attention"][1]
            add("x + attn(x)", x, [("attn", h[f"{at}.attention.output.dense"][1])], layer.attention.output.LayerNorm)
            add("x + ffn(x)", y, [("ffn", h[f"{at}.output.dense"][1])], layer.output.LayerNorm)
        elif name == "gpt2":
            at = f"transformer.h.{i}"
            x, a = h[at][0], h[f"{at}.attn"][1]
            add("x + attn(norm(x))", x, [("attn", a)])
            add("x + ffn(norm(x))", h[f"{at}.ln_2"][0], [("ffn", h[f"{at}.mlp"][1])])
        elif name in ("llama", "mixtral"):
            at = f"model.layers.{i}"
            kind = "ffn" if name == "llama" else "moe"
            add("x + attn(norm(x))", h[at][0], [("attn", h[f"{at}.self_attn"][1])])
            stream = h[f"{at}.post_attention_layernorm"][0]
            add(f"x + {kind}(norm(x))", stream, [("ffn", h[f"{at}.mlp"][1])])
        elif name == "gemma2":
            at = f"model.layers.{i}"
            add("x + norm(attn(norm(x)))", h[at][0], [("attn", h[f"{at}.post_attention_layernorm"][1])])
            stream = h[f"{at}.pre_feedforward_layernorm"][0]
            add("x + norm(ffn(norm(x)))", stream, [("ffn", h[f"{at}.post_feedforward_layernorm"][1])])
        elif name == "olmo2":
            at = f"model.layers.{i}"
            add("x + norm(attn(x))", h[at][0], [("attn", h[f"{at}.post_attention_layernorm"][1])])
            add("x + norm(ffn(x))", h[f"{at}.mlp"][0], [("ffn", h[f"{at}.post_feedforward_layernorm"][1])])
        elif name in ("gptj", "neox"):
            at = f"transformer.h.{i}" if name == "gptj" else f"gpt_neox.layers.{i}"
            attention = h[f"{at}.attn" if name == "gptj" else f"{at}.attention"][1]
            terms = [("attn", attention), ("ffn", h[f"{at}.mlp"][1])]
            add("x + attn(norm(x)) + ffn(norm(x))", h[at][0], terms)
        elif name == "encoder":
            at, layer = f"layers.{i}", model.layers[i]
            add("x + attn(x)", h[at][0], [("attn", h[f"{at}.self_attn"][1])], layer.norm1)
            add("x + ffn(x)", h[f"{at}.linear1"][0], [("ffn", h[f"{at}.linear2"][1])], layer.norm2)
        elif name == "vit":
            at = next(n for n in h if n.endswith((f"layer.{i}", f"layers.{i}")))
            before, after = (next(n for n in h if n == f"{at}.{m}") for m in ("layernorm_before", "layernorm_after"))
            add("x + attn(norm(x))", h[before][0], [("attn", h[after][0] - h[before][0])])
            add("x + ffn(norm(x))", h[after][0], [("ffn", h[at][1] - h[after][0])])
    return found


MODELS = ("bert", "gpt2", "llama", "gemma2", "olmo2", "gptj", "neox", "mixtral", "encoder", "vit")


def batch_for(name: str) -> Any:
    if name == "encoder":
        return torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(3))
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))}
    return padded()


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_sum_is_what_hooks_by_hand_take(name: str) -> None:
    model, batch = build(name), batch_for(name)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with heard(model) as h, torch.no_grad():
            model(**batch) if isinstance(batch, dict) else model(batch)
            expected = by_hand(name, model, h)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    record = sl.probe(model, [batch], max_tokens=500).record
    assert record["not_measured"] == []
    found = [s for s in record["sums"] if s["section"] == "block"]
    assert [s["equation"] for s in found] == [e[0] for e in expected]
    for got, (_, _, stream, terms, norm) in zip(found, expected, strict=True):
        x, parts = rows(stream, batch), [rows(t, batch) for _, t in terms]
        total = x + sum(parts)
        through = norm or (lambda v: v)
        with torch.no_grad():
            close(got["before"], measures.isotropy(x))
            close(got["sum"], measures.isotropy(total))
            close(got["after"], measures.isotropy(through(total)))
            assert [t["kind"] for t in got["terms"]] == [k for k, _ in terms]
            for k, term in enumerate(got["terms"]):
                close(term["own"], measures.isotropy(parts[k]))
                close(term["without"], measures.isotropy(through(total - parts[k])))
                close(term["ratio"], measures.term_ratio(parts[k], x))
                assert term["cosine"] == pytest.approx(measures.cosine(parts[k], x), abs=1e-4)
    assert record["tokens"] == len(x)
    json.dumps(record, allow_nan=False)


def test_a_functional_model_by_hand() -> None:
    model, batch = build("functional"), ids()
    found = sl.probe(model, batch, max_tokens=500).record
    w = list(model.weights)
    x = F.embedding(batch, model.words)
    with torch.no_grad():
        for i in range(3):
            gain, offset, qkv, out, gain2, offset2, up, down = w[8 * i : 8 * i + 8]
            h = F.layer_norm(x, (16,), gain, offset)
            q, k, v = (t.view(4, 9, 2, 8).transpose(1, 2) for t in F.linear(h, qkv).chunk(3, -1))
            later = torch.ones(9, 9).triu(1).bool()
            shares = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(later, -torch.inf).softmax(-1)
            a = F.linear((shares @ v).transpose(1, 2).reshape(4, 9, 16), out)
            first, second = (s for s in found["sums"] if s["layer"] == i)
            close(first["before"], measures.isotropy(x.flatten(0, 1)))
            close(first["terms"][0]["own"], measures.isotropy(a.flatten(0, 1)))
            site = found["layers"][i]["attention"][0]
            assert site["entropy"] == pytest.approx(measures.attention_entropy(shares), rel=1e-3)
            assert site["first_token"] == pytest.approx(float(shares[..., 0].mean()), rel=1e-3)
            x = x + a
            f = F.linear(F.gelu(F.linear(F.layer_norm(x, (16,), gain2, offset2), up)), down)
            close(second["terms"][0]["ratio"], measures.term_ratio(f.flatten(0, 1), x.flatten(0, 1)))
            x = x + f
    assert [n["norm"] for n in found["norms"] if n["section"] == "final"] == ["stream_norm"]


def test_both_stacks_of_an_encoder_decoder() -> None:
    model = build("t5")
    labels = ids(4, 7, seed=8)
    labels[0, -2:] = -100
    batch = padded() | {"labels": labels}
    with heard(model) as h, torch.no_grad():
        model(**batch)
    record = sl.probe(model, batch, max_tokens=500).record
    encoder = record["others"][0]
    assert (record["stack"], encoder["stack"]) == ("decoder", "encoder")
    assert (encoder["tokens"], record["tokens"]) == (33, 26)
    assert [s["site"] for s in record["layers"][0]["attention"]] == ["attn", "cross"]
    real = labels.flatten() != -100
    tokens = padded()["attention_mask"].flatten().bool()
    for stack, name, keep in ((encoder, "encoder", tokens), (record, "decoder", real)):
        for i in (0, 1):
            mine = [s for s in stack["sums"] if s["layer"] == i]
            for k, of_sum in enumerate(mine):
                at = f"{name}.block.{i}.layer.{k}"
                stream = h[f"{at}.layer_norm"][0].flatten(0, 1)[keep]
                close(of_sum["before"], measures.isotropy(stream))
            assert len(mine) == (2 if name == "encoder" else 3)


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_attention_shares_are_the_models_own(name: str, kind: str) -> None:
    model, batch = build(name), padded()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        shares = model(**batch, output_attentions=True).attentions
    model.set_attn_implementation(kind)
    record = sl.probe(model, batch, attention_rows=4).record
    for layer, of in zip(record["layers"], shares, strict=True):
        total = entropy = 0.0
        for row in range(4):
            p = of[row][:, batch["attention_mask"][row].bool()]
            entropy += p.shape[1] * float(measures.attention_entropy(p) or 0.0)
            total += p.shape[1]
        assert layer["attention"][0]["entropy"] == pytest.approx(entropy / total, rel=1e-3)


# --- what must not happen --------------------------------------------------------------------------------------------


def test_padding_does_not_count() -> None:
    model, batch = build("bert"), padded()
    record = sl.probe(model, batch, max_tokens=500).record
    changed = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)}
    assert record["tokens"] == 33
    assert json.dumps(sl.probe(model, changed, max_tokens=500).record) == json.dumps(record)
    without = sl.probe(model, {"input_ids": batch["input_ids"]}, max_tokens=500).record
    assert without["tokens"] == 36


def test_a_wrong_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value taken from the next layer's place: its sum is left out and said, the others stay as they were."""
    model, batch = build("llama"), padded()
    right = sl.probe(model, batch, max_tokens=500).record
    plan = audited_module.plan

    def moved(*args: Any) -> Any:
        made, of = plan(*args)
        sights = made.sights
        term = of[0, 2, "v2"]  # attn(norm(x)) of layer 1 (section 2, behind embed)
        k = next(k for k, s in enumerate(sights) if s.key == term)
        other = next(s for s in sights if s.key == of[0, 3, "v2"])
        sights[k] = Sight(**{**other.__dict__, "key": term})
        return made, of

    monkeypatch.setattr(audited_module, "plan", moved)
    wrong = sl.probe(model, batch, max_tokens=500).record
    assert [(u["layer"], u["equation"]) for u in wrong["not_measured"]] == [(1, "x + attn(norm(x))")]
    assert "do not add up" in wrong["not_measured"][0]["reason"]
    assert [s for s in right["sums"] if (s["layer"], s["equation"]) != (1, "x + attn(norm(x))")] == wrong["sums"]
    with pytest.raises(ProbeError, match="do not add up"):
        Probe(wrong).at("blocks.1.hook_resid_mid")


def test_a_model_that_runs_another_way_than_it_was_read_is_not_measured() -> None:
    with pytest.raises(ProbeError, match="no \\+ of this model could be measured"):
        sl.probe(Swapped(build("llama")), ids(4, 9))


class Swapped(nn.Module):
    """Runs its layers in another order for rows of one length."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        layers = self.model.model.layers
        if ids.shape[1] != 9:
            return self.model(ids, use_cache=False).logits
        x = self.model.model.embed_tokens(ids)
        for layer in layers:  # nothing of the blocks' own sums
            x = torch.tanh(layer.mlp(x))
        return self.model.lm_head(x)


def digest(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


def test_nothing_about_the_model_changes() -> None:
    model, batch = build("gpt2"), padded()
    model.train()
    model.transformer.h[1].eval()
    model.transformer.h[0].mlp.register_buffer("seen", torch.zeros(1))
    for p in list(model.parameters())[:3]:
        p.requires_grad_(False)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    needs = {n: p.requires_grad for n, p in model.named_parameters()}
    flags = [m.training for m in model.modules()]
    attributes = [set(m.__dict__) for m in model.modules()]
    config = copy.deepcopy(model.config.to_dict())
    before, state = digest(model), torch.get_rng_state()
    sl.probe(model, batch | {"labels": batch["input_ids"]}, loss=True, lens=True, intervals=10)
    assert digest(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == flags
    assert {n: p.requires_grad for n, p in model.named_parameters()} == needs
    assert model.config.to_dict() == config
    assert [set(m.__dict__) for m in model.modules()] == attributes
    assert set(grads) == {n for n, p in model.named_parameters() if p.grad is not None}
    assert all(torch.equal(dict(model.named_parameters())[n].grad, g) for n, g in grads.items())
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks
    assert not nn_module._global_forward_hooks
    assert not nn_module._global_forward_pre_hooks


def test_a_failing_forward_leaves_no_hook() -> None:
    model = build("gpt2")
    with pytest.raises(ProbeError, match="a batch holds what the model's forward takes"):
        sl.probe(model, {"input_ids": torch.full((2, 5), 10_000)})
    assert not nn_module._global_forward_hooks
    assert not model.training


@pytest.mark.parametrize(
    ("model", "batches", "match"),
    [
        (nn.Linear(4, 4), torch.randn(2, 3, 4), "found none"),
        ("no model", torch.zeros(1), "nn.Module: got str"),
    ],
)
def test_what_cannot_be_probed_is_refused(model: Any, batches: Any, match: str) -> None:
    with pytest.raises(ProbeError, match=match):
        sl.probe(model, batches)


@pytest.mark.parametrize(
    ("batches", "options", "match"),
    [
        ([], {}, "batches is empty"),
        (3, {}, "iterable of those: got int"),
        ("text", {}, "tokenize it first"),
        ([{}], {}, "without keys"),
        ([{"pixels": torch.zeros(1)}], {}, "got a batch of pixels"),
        ([ids()], {"max_tokens": 1}, "at least 2: got 1"),
        ([ids()], {"measures": "some"}, "'default' or 'all'"),
        ([ids()], {"via": "taps"}, "built from a design"),
    ],
)
def test_what_cannot_be_measured_is_refused(batches: Any, options: Any, match: str) -> None:
    with pytest.raises(ProbeError, match=match):
        sl.probe(build("gpt2"), batches, **options)


def test_half_precision_is_verified_with_its_own_tolerance() -> None:
    record = sl.probe(build("llama").to(torch.bfloat16), padded(), max_tokens=500).record
    assert record["not_measured"] == []
    assert len(record["sums"]) == 6
