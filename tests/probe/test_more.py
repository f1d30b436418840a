"""Lens, gradients, intervals, streaming, names of places, rogue dimensions, and two probes side by side."""

import json
import math
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jsonschema import Draft202012Validator
from torch import Tensor

import sublayer as sl
from sublayer.probe import ProbeError, capture, measures
from sublayer.probe.compare import compare
from sublayer.probe.intervals import TextBootstrap
from sublayer.probe.rogue import rogue_dimensions
from sublayer.probe.sample import Kept, Spread, stride_of
from sublayer.study.claims import answer_claims
from sublayer.study.probed import answer_probe
from tests.probe.foreign import build, ids, padded
from tests.probe.test_capture import DESIGNS
from tests.probe.test_capture import build as ours

# --- our own models, two ways -------------------------------------------------------------------------------------


def alike(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, dict):
        assert set(a) == set(b), path
        for k in a:
            alike(a[k], b[k], f"{path}/{k}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            alike(x, y, f"{path}/{k}")
    elif isinstance(a, float) and isinstance(b, float):
        assert math.isclose(a, b, rel_tol=2e-3, abs_tol=1e-5), (path, a, b)
    else:
        assert a == b, path


@pytest.mark.parametrize("name", DESIGNS)
def test_taps_and_audit_measure_the_same(name: str) -> None:
    model = ours(DESIGNS[name], head=sl.SublayerForCausalLM)
    batch = padded()
    taps, audit = (sl.probe(model, [batch], max_tokens=100, via=via).record for via in ("taps", "audit"))
    assert (taps["source"], audit["source"]) == ("taps", "audit")
    assert audit["not_measured"] == []
    for part in ("tokens", "tokens_seen", "texts", "sums", "layers", "norms"):
        alike(taps[part], audit[part], part)


def test_layers_of_several_streams_have_no_lens() -> None:
    model = ours(DESIGNS["residual"], head=sl.SublayerForCausalLM)
    record = sl.probe(model, ids(), lens=True, loss=True).record
    assert "2 (r, x) pass from layer to layer" in record["lens"]["not_measured"]
    assert record["gradients"]["loss"] > 0


# --- lens and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama", "gemma2", "gptj", "t5", "functional"])
def test_the_lens_is_the_loss_behind_the_models_own_end(name: str) -> None:
    model = build(name)
    batch: Any = ids() if name == "functional" else padded() | {"labels": ids(4, 9, seed=5)}
    lens = sl.probe(model, [batch], lens=True).record["lens"]
    assert len(lens["losses"]) == len(sl.probe(model, [batch]).record["layers"]) + 1
    with torch.no_grad():
        if name == "functional":
            logits = model(batch)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        else:
            loss = model(**batch).loss
    assert lens["losses"][-1] == pytest.approx(float(loss), rel=1e-4) == lens["loss"]
    assert len(set(lens["losses"])) == len(lens["losses"])


def test_the_lens_of_each_layer_by_hand() -> None:
    model, batch = build("llama"), padded() | {"labels": ids(4, 9, seed=5)}
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states  # the last one is behind the final norm
        expected = []
        for state in states[:-1]:
            logits = model.lm_head(model.model.norm(state))
            expected.append(float(F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())))
    got = sl.probe(model, batch, lens=True).record["lens"]
    assert got["losses"][:-1] == pytest.approx(expected, rel=1e-4)


def test_gradients_are_autograds() -> None:
    model, batch = build("gpt2"), padded() | {"labels": ids(4, 9, seed=5)}
    record = sl.probe(model, [batch], loss=True).record
    assert all(p.grad is None for p in model.parameters())
    loss = model(**batch).loss
    loss.backward()
    assert record["gradients"]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for layer, block in zip(record["layers"], model.transformer.h, strict=True):

        def norm(module: torch.nn.Module) -> float:
            return math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None))

        assert layer["gradient_norm"] == pytest.approx(norm(block), rel=1e-4)
        assert layer["gradient_norms"] == pytest.approx({"attn": norm(block.attn), "ffn": norm(block.mlp)}, rel=1e-4)


def test_a_loss_may_be_given() -> None:
    model, x = build("encoder"), torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(1))
    record = sl.probe(model, x, loss=lambda output, batch: (output - batch["src"]).square().mean()).record
    assert record["gradients"]["what"] == "the loss that was given"
    assert all(layer["gradient_norm"] > 0 for layer in record["layers"])
    with pytest.raises(ProbeError, match="one number"):
        sl.probe(model, x, loss=lambda output, batch: output)


def test_where_there_is_no_target_it_is_said() -> None:
    record = sl.probe(build("bert"), padded(), lens=True, loss=True).record
    assert "the batch has no labels" in record["lens"]["not_measured"]
    assert "the batch has no labels" in record["gradients"]["not_measured"]
    assert len(record["sums"]) == 6


# --- streaming ----------------------------------------------------------------------------------------------------


def test_a_spread_is_systematic_and_bounded() -> None:
    spread, held, kept = Spread(10), [], Kept(10)
    real = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.7
    for k in range(0, 400, 13):
        thin, rows = spread.add(real[k : k + 13])
        held = held[::thin] + (rows + k).tolist()
        kept.add(thin, rows + k)
        assert len(held) == spread.kept <= 10
    tokens = real.nonzero().flatten().tolist()
    assert held == tokens[:: spread.stride] == kept.rows().tolist()
    assert spread.seen == len(tokens)


def test_a_spread_keeps_little_more_than_is_measured_in_the_end() -> None:
    by_stream = {}
    for size in (13, 1000, 50_000):  # the same tokens in batches of other sizes
        spread = Spread(4096, hidden=64)
        for begin in range(0, 50_000, size):
            spread.add(torch.ones(min(size, 50_000 - begin), dtype=torch.bool))
        by_stream[size] = (spread.stride, spread.kept)
    ((stride, kept),) = set(by_stream.values())
    assert kept < 4096
    measured = -(-kept // stride_of(kept, 50_000, 64))
    assert 64 <= measured <= kept <= 8 * measured
    everything = Spread(4096)
    everything.add(torch.ones(50_000, dtype=torch.bool))
    assert stride_of(everything.kept, 50_000, 64) * everything.stride == stride_of(kept, 50_000, 64) * stride


def test_the_sample_grows_with_the_text_and_shrinks_with_the_width() -> None:
    kept = [2048 // stride_of(2048, seen, 384) for seen in (4_000, 40_000, 400_000)]
    assert kept == sorted(kept)
    assert kept[0] >= 64
    assert kept[-1] == 2048
    assert stride_of(100, 100, 16) == 1


@pytest.mark.parametrize("via", ["taps", "audit"])
def test_a_generator_gives_what_a_list_gives_and_keeps_few_tokens(via: str) -> None:
    model = ours(DESIGNS["input"]) if via == "taps" else build("gpt2")

    def stream() -> Iterator[dict[str, Tensor]]:
        for k in range(30):
            yield padded(seed=k)

    streamed = sl.probe(model, stream(), max_tokens=50).record
    assert streamed == sl.probe(model, list(stream()), max_tokens=50).record
    assert streamed["tokens_seen"] == 30 * 33
    assert 25 < streamed["tokens"] <= 50
    assert streamed["every"] == 32
    one = {k: torch.cat([b[k] for b in stream()]) for k in ("input_ids", "attention_mask")}
    alike(sl.probe(model, one, max_tokens=50).record["sums"], streamed["sums"])


def test_measuring_in_training_is_what_it_was() -> None:
    model = ours(DESIGNS["post"])
    batches = [padded(seed=k) for k in range(5)]
    record = capture.measure(model, batches, max_tokens=40)
    assert record["tokens"] == 40
    assert set(record) == {"step", "tokens", "sums", "layers"}
    assert set(record["sums"][0]["terms"][0]) == {"term", "kind", "ratio", "cosine", "without"}


def test_rows_of_several_lengths() -> None:
    model = build("gpt2")
    batches = [padded(4, 9), padded(2, 12, seed=1), padded(3, 7, seed=2)]
    record = sl.probe(model, batches, max_tokens=500).record
    assert record["tokens"] == 33 + 21 + 18
    assert record["texts"] == 9
    assert record["not_measured"] == []


# --- intervals ----------------------------------------------------------------------------------------------------


def test_intervals_are_a_bootstrap_over_texts() -> None:
    model = build("bert")
    batches = [padded(4, 9, seed=k) for k in range(5)]
    record = sl.probe(model, batches, max_tokens=500, intervals=300, seed=7).record
    again = sl.probe(model, batches, max_tokens=500, intervals=300, seed=7).record
    found = record["intervals"]
    assert found == again["intervals"]
    assert (found["texts"], found["resamples"], found["seed"]) == (20, 300, 7)
    assert len(found["terms"]) == 6
    for one, of_sum in zip(found["terms"], record["sums"], strict=True):
        assert one["ratio"]["value"] == pytest.approx(of_sum["terms"][0]["ratio"]["median"], rel=1e-5)
        assert one["ratio"]["low"] <= one["ratio"]["value"] <= one["ratio"]["high"]
        after, without = (x["rank_one_residual"] for x in (of_sum["after"], of_sum["terms"][0]["without"]))
        change = one["change"]["rank_one_residual"]
        assert change["value"] == pytest.approx((after - without) / max(after, without), rel=1e-5, abs=1e-9)
        assert change["low"] < change["high"]
    ffn = [t["change"]["rank_one_residual"]["value"] for t in found["terms"] if t["kind"] == "ffn"]
    assert found["median_layer"]["ffn_change"]["value"] == pytest.approx(statistics.median(ffn))


def test_a_resample_is_the_measure_of_its_tokens() -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.4
    texts = torch.arange(60) // 6
    boot = TextBootstrap(texts, 20, seed=1)
    spreads = boot._spreads(x)
    medians = boot._medians(x[:, 0])
    for k in range(20):
        drawn = torch.cat([x[texts == t].repeat(int(n), 1) for t, n in enumerate(boot.weights[k]) if n])
        assert float(spreads["rank_one_residual"][0][k]) == pytest.approx(measures.rank_one_residual(drawn))
        cosine = measures.mean_cosine(drawn)
        assert cosine is not None
        assert float(spreads["mean_cosine"][0][k]) == pytest.approx(1 - cosine)
        values = drawn[:, 0].sort().values
        assert float(medians[k]) in (float(values[len(values) // 2]), float(values[len(values) // 2 - 1]))


def test_few_texts_give_no_interval() -> None:
    found = sl.probe(build("bert"), padded(), intervals=True).record["intervals"]
    assert found["median_layer"]["ffn_change"]["low"] is None
    assert "4 texts" in found["note"]


def test_claims_of_a_probe_are_those_of_a_study() -> None:
    record = sl.probe(build("bert"), [padded(seed=k) for k in range(4)], max_tokens=500, intervals=50).record
    run = {"design": "m", "seed": 0, "lr": 0.0, "status": "ok", "measures": record}
    expected, got = answer_claims([run], ["m"]), answer_probe(record, "m")
    for one, other in zip(got, expected, strict=True):
        assert one["answers"][0]["answer"] == other["answers"][0]["answer"]
        assert one["answers"][0]["value"] == other["answers"][0]["value"]
        assert one["answers"][0]["over"] == "texts"
        assert "interval over seeds" not in one["answers"][0]["detail"]


# --- names of places ----------------------------------------------------------------------------------------------


def test_names_of_transformer_lens() -> None:
    got = sl.probe(build("gpt2"), padded(), max_tokens=500)
    record = got.record
    first, second = (s for s in record["sums"] if s["layer"] == 1)
    assert got.at("blocks.1.hook_resid_pre")["isotropy"] == first["before"]
    assert got.at("blocks.1.hook_resid_mid")["isotropy"] == first["sum"] == second["before"]
    assert got.at("blocks.1.hook_resid_post")["isotropy"] == second["sum"]
    assert got.at("blocks.1.hook_attn_out")["isotropy"] == first["terms"][0]["own"]
    assert got.at("blocks.1.hook_mlp_out")["ratio"] == second["terms"][0]["ratio"]
    assert got.at("blocks.1.attn.hook_pattern")["sites"] == record["layers"][1]["attention"]
    norms = [n for n in record["norms"] if n["layer"] == 1]
    assert got.at("blocks.1.ln1.hook_normalized")["after"] == norms[0]["after"]
    assert got.at("blocks.1.ln2.hook_normalized")["before"] == norms[1]["before"] == first["sum"]
    assert got.at("ln_final.hook_normalized")["place"] == "norm(x)"


def test_post_norm_has_its_norms_behind_the_sums() -> None:
    got = sl.probe(build("bert"), padded(), max_tokens=500)
    first = next(s for s in got.record["sums"] if s["layer"] == 0)
    assert got.at("blocks.0.ln1.hook_normalized")["after"] == first["after"]
    assert got.at("blocks.0.hook_resid_mid")["isotropy"] == first["sum"] != first["after"]


def test_sandwich_and_output_norms() -> None:
    got = sl.probe(build("gemma2"), padded(), max_tokens=500)
    assert got.at("blocks.0.ln1_post.hook_normalized")["place"] == "norm(attn(norm(x)))"
    with pytest.raises(ProbeError, match="no such norm; its norms are attn_out_norm, ffn_out_norm"):
        sl.probe(build("olmo2"), padded()).at("blocks.0.ln1.hook_normalized")


@pytest.mark.parametrize(
    ("name", "place", "match"),
    [
        ("gptj", "blocks.0.hook_resid_mid", "are parallel .* there is no stream between them"),
        ("gpt2", "blocks.9.hook_resid_mid", "3 layers, 0 to 2"),
        ("gpt2", "blocks.0.hook_q", "a place is one of"),
        ("gpt2", "resid_mid", "a place is one of"),
    ],
)
def test_a_place_that_is_not_there_is_refused(name: str, place: str, match: str) -> None:
    with pytest.raises(ProbeError, match=match):
        sl.probe(build(name), padded()).at(place)


# --- rogue dimensions ---------------------------------------------------------------------------------------------


def test_rogue_dimensions() -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 5] += 30
    found = rogue_dimensions(x)
    assert found["cosine"][0]["dimension"] == 5
    assert found["cosine"][0]["share"] == pytest.approx(1.0, abs=0.01)
    assert [m["dimension"] for m in found["magnitude"]] == [5]
    units = x / x.norm(dim=1, keepdim=True)
    pairs = [float(units[i, 5] * units[j, 5]) for i in range(20) for j in range(20) if i != j]
    whole = [float(units[i] @ units[j]) for i in range(20) for j in range(20) if i != j]
    assert rogue_dimensions(x[:20])["cosine"][0]["share"] == pytest.approx(sum(pairs) / sum(whole))
    nothing = {"cosine": [], "magnitude": [], "magnitude_count": 0}
    assert rogue_dimensions(x[:1]) == rogue_dimensions(x * math.nan) == rogue_dimensions(torch.zeros(4, 3)) == nothing


# --- two side by side, and the schema -------------------------------------------------------------------------------


def test_two_side_by_side() -> None:
    a, b = (sl.probe(build(name), padded(), max_tokens=500) for name in ("gpt2", "bert"))
    both = compare(a, b, ("one", "other"))
    record = both.to_dict()
    assert len(record["terms"]) == 6
    term = record["terms"][0]
    assert term["ratio"]["difference"] == term["ratio"]["b"] - term["ratio"]["a"]
    assert term["ratio"]["a"] == a.record["sums"][0]["terms"][0]["ratio"]["median"]
    assert str(both).startswith("A: one\nB: other")
    json.dumps(record, allow_nan=False)
    t5 = sl.probe(build("t5"), padded() | {"labels": ids()})
    assert [tuple(u) for u in compare(a, t5).record["unmatched"]][:2] == [(0, "layer 2, attn"), (0, "layer 2, ffn")]
    with pytest.raises(ProbeError, match="schema"):
        compare(a, {"schema": "other"})


@pytest.mark.parametrize("name", ["bert", "t5", "vit", "functional"])
def test_a_record_fits_its_schema(name: str) -> None:
    from sublayer.probe.result import schema

    batch: Any = padded() | {"labels": ids()}
    if name == "vit":
        batch = {"pixel_values": torch.randn(2, 3, 16, 16)}
    elif name == "functional":
        batch = ids()
    record = sl.probe(build(name), batch, intervals=20, measures="all").record
    checker = Draft202012Validator(schema())
    checker.validate(json.loads(json.dumps(record, allow_nan=False)))
    record["sums"][0]["terms"][0].pop("own")
    assert list(checker.iter_errors(record))
