"""The measure record against sums worked out by hand from what the model's own modules read and wrote."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sublayer.model import (
    SublayerConfig,
    SublayerForCausalLM,
    SublayerForMaskedLM,
    SublayerForSequenceClassification,
    SublayerModel,
)
from sublayer.notation import parse
from sublayer.probe import gradient_norms, measure, measures
from sublayer.probe.attention import visible
from sublayer.probe.sums import equation, kind, stream_name

POST = "x = norm(x + attn(x)); x = norm(x + ffn(x))"
INPUT = "x = x + attn(norm(x)); x = x + ffn(norm(x))"
PAF = "x = norm(x + attn(x) + ffn(x))"
RESIDUAL = (
    "embed: x = e; r = e\n"
    "block: a = attn(x); r = r + a; x = norm(x + a); f = ffn(x); r = r + f; x = norm(x + f)\n"
    "final: x = x + norm(r)"
)
RANGED = f"block[:1]: {POST}\nblock[1:]: x = x + attn(norm(x))/sqrt(layer); x = x + 2*ffn(norm(x))"
DEEPNORM = "x = norm((2*depth)**0.25 * x + attn(x)); x = norm((2*depth)**0.25 * x + ffn(x))"
DOT = "embed: x = scale(norm(e))\nblock: x = x + gate(dot(norm(x))); x = x + norm(ffn(norm(x)))\nfinal: x = norm(x)"
DESIGNS = {
    "post": POST, "input": INPUT, "paf": PAF, "residual": RESIDUAL, "ranged": RANGED, "deepnorm": DEEPNORM, "dot": DOT,
}  # fmt: skip


def build(design: str, head: type[nn.Module] = SublayerModel, **options: Any) -> Any:
    settings = {
        "design": design, "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 24, "max_position_embeddings": 32, "init_seed": 1,
    }  # fmt: skip
    model = head(SublayerConfig(**(settings | options)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():  # every weight random: at a fresh model's ones and zeros, norms look alike
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.ndim == 1) * 0.5)
    return model


def tokens(rows: int = 3, length: int = 9, seed: int = 3) -> Tensor:
    return torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(seed))


@contextmanager
def heard(model: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Module name -> (what it read, what it wrote), each [tokens, d], while the model runs by itself."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def listen(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            if isinstance(args[0], Tensor) and isinstance(result, Tensor) and args[0].is_floating_point():
                found[name] = (args[0].flatten(0, 1), result.flatten(0, 1))

        return hook

    handles = [m.register_forward_hook(listen(n)) for n, m in model.named_modules() if n]
    yield found
    for handle in handles:
        handle.remove()


def run_by_hand(model: nn.Module, **inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    with heard(model) as found, torch.no_grad():
        model.eval()(**inputs)
    return found


def sums_of(record: dict[str, Any], layer: int) -> list[dict[str, Any]]:
    return [s for s in record["sums"] if s["layer"] == layer]


def check(of_sum: dict[str, Any], equation: str, before: Tensor, after: Tensor, *terms: tuple[Any, ...]) -> None:
    """`terms`: (label, kind, the term with its factor, the stream with its factor, the sum without it)."""
    assert of_sum["equation"] == equation
    assert of_sum["before"] == pytest.approx(measures.isotropy(before), rel=1e-4)
    assert of_sum["after"] == pytest.approx(measures.isotropy(after), rel=1e-4)
    assert [t["term"] for t in of_sum["terms"]] == [t[0] for t in terms]
    for got, (_, made_by, term, stream, without) in zip(of_sum["terms"], terms, strict=True):
        assert got["kind"] == made_by
        assert got["ratio"] == pytest.approx(measures.quartiles(term.norm(dim=-1) / stream.norm(dim=-1)), rel=1e-4)
        expected = torch.cosine_similarity(term.double(), stream.double(), dim=-1).mean()
        assert got["cosine"] == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
        assert got["without"] == pytest.approx(measures.isotropy(without), rel=1e-4)


# --- by hand -------------------------------------------------------------------------------------------------------


def test_post_norm_by_hand() -> None:
    model = build(POST)
    record = measure(model, tokens())
    found = run_by_hand(model, input_ids=tokens())
    for i, layer in enumerate(model.layers):
        x, a = found[f"layers.{i}.attn"]
        y, f = found[f"layers.{i}.ffn"]
        first, second = sums_of(record, i)
        with torch.no_grad():
            check(first, "x + attn(x)", x, y, ("attn", "attn", a, x, layer.stream_norm(x)))
            after = found[f"layers.{i}.stream_norm_2"][1]
            check(second, "x + ffn(x)", y, after, ("ffn", "ffn", f, y, layer.stream_norm_2(y)))
        assert record["layers"][i]["stream_norm"] == pytest.approx(measures.stream_norm(after), rel=1e-5)
    assert len(record["sums"]) == 6


def test_input_norm_by_hand() -> None:
    model = build(INPUT)
    record = measure(model, tokens())
    found = run_by_hand(model, input_ids=tokens())
    for i in range(3):
        x, a = found[f"layers.{i}.attn_in_norm"][0], found[f"layers.{i}.attn"][1]
        f = found[f"layers.{i}.ffn"][1]
        first, second = sums_of(record, i)
        check(first, "x + attn(norm(x))", x, x + a, ("attn", "attn", a, x, x))
        check(second, "x + ffn(norm(x))", x + a, x + a + f, ("ffn", "ffn", f, x + a, x + a))
        assert record["layers"][i]["stream_norm"] == pytest.approx(measures.stream_norm(x + a + f), rel=1e-5)


def test_paf_by_hand() -> None:
    model = build(PAF)
    record = measure(model, tokens())
    found = run_by_hand(model, input_ids=tokens())
    for i, layer in enumerate(model.layers):
        x, a = found[f"layers.{i}.attn"]
        f = found[f"layers.{i}.ffn"][1]
        (only,) = sums_of(record, i)
        norm = layer.stream_norm
        with torch.no_grad():
            terms = ("attn", "attn", a, x, norm(x + f)), ("ffn", "ffn", f, x, norm(x + a))
            check(only, "x + attn(x) + ffn(x)", x, norm(x + a + f), *terms)


def test_two_streams_by_hand() -> None:
    model = build(RESIDUAL)
    record = measure(model, tokens())
    found = run_by_hand(model, input_ids=tokens())
    r = found["layers.0.attn"][0]  # r begins as the embedding output, as x does
    for i in range(3):
        x, a = found[f"layers.{i}.attn"]
        y, f = found[f"layers.{i}.ffn"]
        by_stream = {(s["stream"], len(s["terms"])): s for s in sums_of(record, i)}
        check(by_stream["r", 2], "r + attn(x) + ffn(norm(x + attn(x)))", r, r + a + f,
              ("attn", "attn", a, r, r + f), ("ffn", "ffn", f, r, r + a))  # fmt: skip
        first = next(s for s in sums_of(record, i) if s["equation"] == "x + attn(x)")
        with torch.no_grad():
            check(first, "x + attn(x)", x, y, ("attn", "attn", a, x, model.layers[i].stream_norm(x)))
        r = r + a + f
    (final,) = sums_of(record, 3)
    x, normed = found["final_section"][0], found["final_section.stream_norm"][1]
    assert final["section"] == "final"
    check(final, "x + norm(r)", x, x + normed, ("norm(r)", "stream", normed, x, x))


def test_ranges_and_scalars_by_hand() -> None:
    model = build(RANGED)
    record = measure(model, tokens())
    found = run_by_hand(model, input_ids=tokens())
    assert [s["equation"] for s in sums_of(record, 0)] == ["x + attn(x)", "x + ffn(x)"]
    for i in (1, 2):
        x, f = found[f"layers.{i}.attn_in_norm"][0], 2 * found[f"layers.{i}.ffn"][1]
        a = found[f"layers.{i}.attn"][1] / math.sqrt(i + 1)
        first, second = sums_of(record, i)
        check(first, "x + attn(norm(x))/sqrt(layer)", x, x + a, ("attn", "attn", a, x, x))
        check(second, "x + 2*ffn(norm(x))", x + a, x + a + f, ("ffn", "ffn", f, x + a, x + a))


def test_the_factor_of_the_stream_counts() -> None:
    model = build(DEEPNORM)
    record = measure(model, tokens())
    found = run_by_hand(model, input_ids=tokens())
    x, a = found["layers.1.attn"]
    alpha = 6**0.25
    first = sums_of(record, 1)[0]
    with torch.no_grad():
        norm = model.layers[1].stream_norm
        check(
            first,
            "(2*depth)**0.25*x + attn(x)",
            x,
            norm(alpha * x + a),
            ("attn", "attn", a, alpha * x, norm(alpha * x)),
        )


# --- nothing is disturbed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS.keys())
@pytest.mark.parametrize("head", [SublayerForCausalLM, SublayerForMaskedLM])
def test_measuring_changes_nothing(design: str, head: type[nn.Module]) -> None:
    model = build(design, head, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    model.train()
    model.model.layers[1].eval()  # a mixture of modes must survive
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    before = {n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None}
    flags = [m.training for m in model.modules()]
    forwards = [layer.forward for layer in model.model.layers]
    torch.manual_seed(11)
    state = torch.get_rng_state()
    record = measure(model, [ids, ids[:2]])
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == flags
    assert [layer.forward for layer in model.model.layers] == forwards
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name][0])
            assert torch.equal(parameter.grad, before[name][1])
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS.keys())
def test_the_watched_forward_is_the_plain_one_bit_for_bit(design: str) -> None:
    # Parallel branches run one by one under the watch, to be seen: the same bits where they always do.
    model = build(design, fuse_parallel=False).eval()
    results = []
    handle = model.final_section.register_forward_hook(lambda module, args, result: results.append(result.clone()))
    with torch.no_grad():
        plain = model(input_ids=tokens()).last_hidden_state
    measure(model, tokens())
    handle.remove()
    assert torch.equal(results[1], plain)


def test_training_with_and_without_measuring_ends_at_the_same_weights() -> None:
    def train(measured: bool) -> SublayerForMaskedLM:
        model = build(POST, SublayerForMaskedLM, hidden_dropout_prob=0.2)
        model.train()
        torch.manual_seed(5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(4):
            ids = tokens(seed=step)
            model(input_ids=ids, labels=ids).loss.backward()
            if measured:
                measure(model, ids, step=step, gradient_norms=gradient_norms(model))
            optimizer.step()
            optimizer.zero_grad()
        return model

    for (name, a), b in zip(train(False).named_parameters(), train(True).parameters(), strict=True):
        assert torch.equal(a, b), name


def test_flags_and_forwards_come_back_after_an_exception() -> None:
    model = build(INPUT).train()
    plain = model.layers[0].forward
    with pytest.raises(IndexError):
        measure(model, torch.full((1, 4), 999))
    assert model.training
    assert model.layers[2].attn.training
    assert model.layers[0].forward == plain
    assert not model.layers[0]._forward_hooks


# --- which tokens --------------------------------------------------------------------------------------------------


def test_padding_does_not_count() -> None:
    model = build(INPUT, SublayerForMaskedLM)
    ids = tokens(2, 6)
    alone = measure(model, ids)
    padded = torch.cat([ids, torch.full((2, 4), 7)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 4] * 2)
    got = measure(model, {"input_ids": padded, "attention_mask": mask, "labels": padded})
    assert got["tokens"] == 12
    for a, b in zip(alone["sums"], got["sums"], strict=True):
        assert a["after"] == pytest.approx(b["after"], rel=1e-3)
    for a, b in zip(alone["layers"], got["layers"], strict=True):
        for name in ("entropy", "first_token"):
            assert a["attention"][0][name] == pytest.approx(b["attention"][0][name], rel=1e-3)


def test_several_batches_are_one_cloud() -> None:
    model = build(PAF)
    ids = tokens(4, 8)
    whole, parts = measure(model, ids), measure(model, iter([ids[:1], {"input_ids": ids[1:]}]))
    assert whole["tokens"] == parts["tokens"] == 32
    for a, b in zip(whole["sums"], parts["sums"], strict=True):
        assert a["after"] == pytest.approx(b["after"], rel=1e-4)
        assert a["terms"][0]["ratio"] == pytest.approx(b["terms"][0]["ratio"], rel=1e-4)


def test_a_limit_spreads_over_all_batches() -> None:
    model = build(INPUT)
    ids = tokens(4, 8)
    got = measure(model, [ids[:2], ids[2:]], max_tokens=8)
    assert got["tokens"] == 8
    found = run_by_hand(model, input_ids=ids)
    picked = found["layers.0.attn_in_norm"][0][torch.arange(8) * 4]
    assert sums_of(got, 0)[0]["before"] == pytest.approx(measures.isotropy(picked), rel=1e-4)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches is empty"),
        ({"labels": torch.zeros(1, 2)}, "got the keys labels"),
        (torch.zeros(5, dtype=torch.long), r"\(5,\)"),
        ({"input_ids": torch.zeros(1, 3, dtype=torch.long), "attention_mask": torch.zeros(1, 3)}, "0 tokens"),
    ],
)
def test_what_cannot_be_measured_is_said(batches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(build(POST), batches)


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="got Linear"):
        measure(nn.Linear(2, 2), tokens())


def test_heads_and_wrappers_are_seen_through() -> None:
    head = build(POST, SublayerForSequenceClassification)
    expected = measure(head.model, tokens())
    assert measure(head, tokens()) == expected

    class Wrapper(nn.Module):  # as DistributedDataParallel has it
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    assert measure(Wrapper(head), tokens()) == expected


# --- attention and gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [SublayerForCausalLM, SublayerForMaskedLM])
@pytest.mark.parametrize("inputs", ["plain", "padded", "packed", "positions"])
def test_attention_equals_the_weights_of_the_eager_backend(head: type[nn.Module], inputs: str) -> None:
    """Probabilities are written out from queries and keys; the model's own, where it keeps them, must be the same."""
    model = build(INPUT, head, num_key_value_heads=2, qk_norm=True).eval()
    batch = {"input_ids": tokens(3, 8)}
    real = torch.ones(3, 8, dtype=torch.bool)
    documents = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]).expand(3, 8)
    if inputs == "padded":
        real[0, 6:] = False
        real[1, :3] = False
        batch["attention_mask"] = real.long()
    elif inputs == "packed":
        batch["sequence_ids"] = documents
    elif inputs == "positions":
        batch["position_ids"] = torch.tensor([0, 1, 2, 0, 1, 0, 1, 2]).expand(3, 8)
    got = measure(model, batch, attention_rows=99)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager.model(**batch, output_attentions=True).attentions
    for layer, p in zip(got["layers"], weights, strict=True):
        entropy = torch.special.entr(p).sum(-1)  # [batch, heads, queries]
        first = []
        for b in range(3):
            for q in real[b].nonzero().flatten().tolist():
                allowed = visible(
                    real[b], documents[b] if inputs in ("packed", "positions") else None, head is SublayerForCausalLM
                )
                first.append(p[b, :, q, int(allowed[q].nonzero()[0])])
        (site,) = layer["attention"]
        assert site["site"] == "attn"
        assert site["entropy"] == pytest.approx(float(entropy.transpose(1, 2)[real].mean()), rel=1e-4)
        assert site["first_token"] == pytest.approx(float(torch.stack(first).mean()), rel=1e-4)


def test_attention_of_dot_and_of_none() -> None:
    sites = [a["site"] for layer in measure(build(DOT), tokens())["layers"] for a in layer["attention"]]
    assert sites == ["dot"] * 3
    assert all(not layer["attention"] for layer in measure(build("x = x + ffn(norm(x))"), tokens())["layers"])
    assert all(not layer["attention"] for layer in measure(build(POST), tokens(), attention_rows=0)["layers"])


def test_gradient_norms() -> None:
    model = build(INPUT, SublayerForMaskedLM)
    assert gradient_norms(model) == [None] * 3
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    by_hand = [
        math.sqrt(sum(float(p.grad.double().square().sum()) for p in layer.parameters()))
        for layer in model.model.layers
    ]
    assert gradient_norms(model) == pytest.approx(by_hand, rel=1e-5)
    model.model.layers[1].ffn.up_proj.weight.grad[0, 0] = math.nan
    got = gradient_norms(model)
    assert got[1] is None
    record = measure(model, ids, step=7, gradient_norms=[1.0, math.inf, None])
    assert record["step"] == 7
    assert [layer["gradient_norm"] for layer in record["layers"]] == [1.0, None, None]


def test_a_broken_model_gives_none_not_nan() -> None:
    model = build(INPUT)
    with torch.no_grad():
        model.layers[1].ffn.down_proj.weight[0, 0] = math.nan
    record = measure(model, tokens())
    json.dumps(record, allow_nan=False)
    assert sums_of(record, 1)[1]["after"]["mean_cosine"] is None
    assert sums_of(record, 0)[1]["after"]["mean_cosine"] is not None


# --- reading the program -------------------------------------------------------------------------------------------


def test_kinds_and_names() -> None:
    section = parse("h = norm(x); x = x + gate(attn(h)) - 0.5*norm(attn(h) + ffn(h)); x = x + stop(h)").layer(0, 1)
    terms = {equation(section, s): [kind(section, v) for _, v in s.terms if v != s.stream] for s in section.sums}
    assert ["attn+ffn" in kinds for kinds in terms.values()].count(True) == 1
    assert all("stream" in kinds or "attn" in kinds for kinds in terms.values())
    paf = parse(PAF).layer(0, 1)
    (only,) = paf.sums
    assert stream_name(paf, only.stream) == "x"
    assert equation(paf, only) == "x + attn(x) + ffn(x)"
    made = parse("y = attn(x); x = y + ffn(y)").layer(0, 1)
    assert stream_name(made, made.sums[0].stream) == "attn(x)"
    assert equation(made, made.sums[0]) == "attn(x) + ffn(attn(x))"
