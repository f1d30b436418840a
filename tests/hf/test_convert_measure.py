"""How far a conversion moved the function, and the defect map, against plain torch."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sublayer.hf.convert import (
    ConvertError,
    defect_map,
    measure_change,
    own_text,
    rewire,
    sample,
    to_parallel,
    tokenizer_of,
)
from sublayer.hf.convert.measure import LOGIT_TOKENS
from sublayer.model import SublayerForMaskedLM, SublayerModel
from sublayer.notation import parse
from tests.model.support import same, tiny, tokens


def batch(**more: Tensor) -> dict[str, Tensor]:
    return {"input_ids": tokens(), "labels": tokens(), **more}


@torch.no_grad()
def test_the_change_is_what_plain_torch_gives() -> None:
    before, after = tiny("input-norm"), rewire(tiny("input-norm"), "parallel-two-norms").model
    found = measure_change(before, after, [batch(), {"input_ids": tokens(1, 5, 3), "labels": tokens(1, 5, 3)}])
    rows = [tokens()[:1], tokens()[1:], tokens(1, 5, 3)]
    old = [before(ids, labels=ids, output_hidden_states=True) for ids in rows]
    new = [after(ids, labels=ids, output_hidden_states=True) for ids in rows]
    weights = [ids.shape[1] - 1 for ids in rows]
    for loss, outputs in ((found.loss_before, old), (found.loss_after, new)):
        mean = sum(o.loss.item() * w for o, w in zip(outputs, weights, strict=True)) / sum(weights)
        assert loss == pytest.approx(mean, abs=1e-5)
    for i in (1, 2):  # the last one is after the final norm in hidden_states
        h = torch.cat([o.hidden_states[i][0] for o in old])
        moved = torch.cat([o.hidden_states[i][0] for o in new])
        assert found.layers[i - 1] == pytest.approx(((moved - h).norm() / h.norm()).item(), rel=1e-5)
    a, b = (torch.cat([o.logits[0] for o in outputs]) for outputs in (old, new))
    assert found.output == pytest.approx(((b - a).abs().max() / a.abs().max()).item(), rel=1e-4)
    kl = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="batchmean")
    assert found.kl == pytest.approx(kl.item(), rel=1e-4)
    assert found.tokens == 19
    assert not found.equal


def test_a_model_compared_with_itself_has_not_moved_and_is_left_as_it_was() -> None:
    model = tiny("post-norm", hidden_dropout_prob=0.5).train()
    found = measure_change(model, model, batch())
    assert found.equal
    assert (found.output, found.kl, set(found.layers)) == (0.0, 0.0, {0.0})
    assert found.loss_before == found.loss_after
    assert model.training
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_padding_does_not_count() -> None:
    before, after = tiny("post-norm"), rewire(tiny("post-norm"), "paf").model
    plain = measure_change(before, after, tokens())
    padded = torch.cat([tokens(), torch.zeros(2, 3, dtype=torch.long)], 1)
    mask = (padded != 0).long()
    found = measure_change(before, after, {"input_ids": padded, "attention_mask": mask})
    assert found.tokens == plain.tokens == 14
    assert found.layers == pytest.approx(plain.layers, rel=1e-5)
    assert found.loss_before is None


def test_models_without_a_head_and_many_tokens() -> None:
    before = tiny("post-norm", SublayerModel)
    found = measure_change(before, rewire(before, "paf").model, tokens(2, 40))
    assert found.kl is None
    assert found.loss_after is None
    assert found.output > 1e-3
    long = tiny("post-norm", max_position_embeddings=400)
    assert measure_change(long, long, tokens(2, LOGIT_TOKENS)).tokens == 2 * LOGIT_TOKENS


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConvertError, match="one depth and one vocabulary"):
        measure_change(tiny("paf"), tiny("paf", num_hidden_layers=2), tokens())
    with pytest.raises(ConvertError, match="has none"):
        measure_change(tiny("paf"), tiny("paf"), [])


@torch.no_grad()
def by_hand(model: Any, norm_of: Any) -> list[float]:
    """||f(x + a) - f(x)|| / ||f(x)|| of every layer, with the wiring written out."""
    context = None
    found = []

    def grab(module: Any, given: Any) -> None:
        nonlocal context
        context = given[-1]

    for layer in model.model.layers:
        streams: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(grab),
            layer.register_forward_pre_hook(lambda module, given, kept=streams: kept.append(given[0])),
        ]
        model(tokens(), use_cache=False)
        for hook in hooks:
            hook.remove()
        x = streams[0]
        f, read = norm_of(layer)
        a = layer.attn(read(x), context)
        found.append(((f(x + a) - f(x)).norm() / f(x).norm()).item())
    return found


def test_the_defect_map_is_what_plain_torch_gives() -> None:
    inner = by_hand(
        tiny("input-norm"), lambda layer: (lambda h: layer.ffn(layer.ffn_in_norm(h)), lambda x: layer.attn_in_norm(x))
    )
    post = by_hand(tiny("post-norm"), lambda layer: (lambda h: layer.ffn(layer.stream_norm(h)), lambda x: x))
    for design, expected in (("input-norm", inner), ("post-norm", post)):
        found = defect_map(tiny(design), batch())
        assert [each.defect for each in found.layers] == pytest.approx(expected, rel=1e-5)
        assert len(set(expected)) == 3
        order = sorted(range(3), key=lambda i: expected[i])
        assert found.ranking() == tuple(order)


def test_every_serial_sub_layer_of_a_layer_counts() -> None:
    """Macaron: the attention waits for the first FFN, and the second FFN for both."""
    model = tiny("macaron", num_hidden_layers=1)
    found = defect_map(model, tokens())
    seen: dict[str, Any] = {}
    layer: Any = model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda module, given: seen.update(x=given[0], context=given[1]))
    with torch.no_grad():
        model(tokens(), use_cache=False)
        hook.remove()
        x, context = seen["x"], seen["context"]
        one, two, _ = (layer.get_submodule(s.name) for s in layer.section.sites if "norm" in s.name)
        first = one(x + 0.5 * layer.ffn(x))
        a, a0 = layer.attn(first, context), layer.attn(one(x), context)
        f, f0 = layer.ffn_2(two(first + a)), layer.ffn_2(two(one(x)))
    moved = (a - a0).square().sum() + (f - f0).square().sum()
    assert found.layers[0].defect == pytest.approx(math.sqrt(moved / (a0.square().sum() + f0.square().sum())), rel=1e-5)


def test_the_losses_of_the_map_are_those_of_models_with_one_parallel_layer() -> None:
    model = tiny("sandwich")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = defect_map(model, batch())
    for each in found.layers:
        assert parse(each.equation).block == parse("x = x + norm(attn(norm(x))) + norm(ffn(norm(x)))").block
        alone = rewire(model, "x = x + norm(attn(norm(x))) + norm(ffn(norm(x)))", [each.layer], batches=batch())
        assert alone.change is not None
        assert each.loss == pytest.approx(alone.change.loss_after, rel=1e-5)
        assert each.loss != pytest.approx(found.loss, rel=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("by", ["defect", "loss"])
def test_to_parallel_converts_the_layers_that_mind_least(by: Any) -> None:
    model = tiny("input-norm", num_hidden_layers=5)
    ranking = defect_map(model, batch()).ranking(by)
    assert sorted(ranking) == list(range(5))
    found = to_parallel(model, 2, batch(), by=by)
    assert found.layers == tuple(sorted(ranking[:2]))
    whole = rewire(model, "parallel-two-norms", found.layers)
    assert found.after == whole.after
    assert same(found.model(tokens()).logits, whole.model(tokens()).logits)
    assert to_parallel(model, 5, batch()).after == parse("parallel-two-norms")


def test_the_two_measures_can_disagree() -> None:
    rankings = [defect_map(tiny("input-norm", seed=seed), batch()) for seed in range(6)]
    assert any(found.ranking("defect") != found.ranking("loss") for found in rankings)


def test_layers_without_a_serial_sub_layer_are_listed_with_the_reason() -> None:
    found = defect_map(tiny("sandwich-order", num_hidden_layers=4), tokens())
    assert [each.defect is None for each in found.layers] == [True, False, False, True]
    assert "no sub-layer of it reads a stream" in found.layers[0].reason
    assert found.loss is None
    with pytest.raises(ConvertError, match="only on a sample with labels"):
        found.ranking("loss")
    with pytest.raises(ConvertError, match="by defect or loss, got 'size'"):
        found.ranking("size")  # type: ignore[arg-type]
    with pytest.raises(ConvertError, match="2 of 4 layers can be made parallel, got 3"):
        to_parallel(tiny("sandwich-order", num_hidden_layers=4), 3, tokens())
    with pytest.raises(ConvertError, match="no layer can be made parallel"):
        defect_map(tiny("paf"), tokens())


def test_samples(tmp_path: Any) -> None:
    causal, masked = tiny("paf", vocab_size=300), tiny("paf", SublayerForMaskedLM, vocab_size=300)
    drawn = sample(causal)
    assert "random" in drawn.notice
    assert drawn.sha256 == sample(causal).sha256 != sample(causal, seed=1).sha256
    assert all(row["input_ids"].shape == (1, 64) for row in drawn.batches)  # as many as it has positions
    assert torch.equal(drawn.batches[0]["labels"], drawn.batches[0]["input_ids"])
    assert tokenizer_of(tmp_path) is None
    tokenizer = make_tokenizer(tmp_path)
    read = sample(masked, tokenizer)
    assert not read.notice
    for row in read.batches:
        hidden = row["labels"] != -100
        assert 0 < hidden.sum() < hidden.numel() / 6 + 1
        assert (row["input_ids"][hidden] == tokenizer.mask_token_id).all()
        assert (row["labels"][hidden] != tokenizer.mask_token_id).all()
    given = sample(causal, tokenizer, "one two three\n\nfour five")
    assert [tokenizer.decode(row["input_ids"][0]) for row in given.batches] == ["one two three", "four five"]
    with pytest.raises(ConvertError, match="the text has none"):
        sample(causal, tokenizer, " \n\n ")
    with pytest.raises(ConvertError, match="it has none: leave the text out"):
        sample(causal, None, "words")
    with pytest.raises(ConvertError, match="below the model's vocab_size"):
        sample(tiny("paf"), tokenizer)
    assert "labels" not in sample(tiny("paf", SublayerModel)).batches[0]


def make_tokenizer(folder: Any) -> Any:
    from sublayer.train import tokenizer as training
    from sublayer.train.documents import Document

    training.train([Document("own", own_text())], 300, folder)
    return tokenizer_of(folder)


def counted(model: Any, plain: Any) -> tuple[list[float], list[float]]:
    """For every sub-layer of a model with two sums a layer: the size of what its input products get, in units of the
    weights of ``plain``, and its share of the stream at the +."""
    reads, shares = [], []
    for layer, unit in zip(model.model.layers, plain.model.layers, strict=True):
        values: dict[str, Tensor] = {}
        with torch.no_grad(), layer.tapped(lambda name, value, kept=values: kept.setdefault(name, value)):
            model(tokens(), use_cache=False)
        for add in layer.section.sums:
            (term,) = [t for t in add.args if t != add.stream]
            branch = layer.section.branch(term)
            own, other = (each.get_submodule(branch.site.name).inputs[0].weight for each in (layer, unit))
            reads.append((values[branch.args[0]].square().mean().sqrt() * own.norm() / other.norm()).item())
            shares.append((values[term].square().mean() / values[add.stream].square().mean()).sqrt().item())
    return reads, shares


@pytest.mark.parametrize("after", ["input-norm", "output-norm", "sandwich", "no-norm"])
@pytest.mark.parametrize("variant", [{}, {"norm": "rmsnorm", "norm_zero_centred": True}])
def test_calibrated_sub_layers_read_and_count_as_before(after: str, variant: dict[str, Any]) -> None:
    old = tiny("post-norm", **variant)
    plain, found = rewire(old, after), rewire(old, after, calibrate=tokens(), batches=batch())
    wanted = counted(old, old)
    for now, without, before in zip(
        counted(found.model, plain.model), counted(plain.model, plain.model), wanted, strict=True
    ):
        assert now == pytest.approx(before, rel=3e-3)
        assert without != pytest.approx(before, rel=0.05)
    changed = [t for t in found.targets if t.note.endswith("calibrated")]
    assert changed
    for target in found.targets:
        same_numbers = torch.equal(found.model.get_parameter(target.name), plain.model.get_parameter(target.name))
        # 0 times a factor is 0.
        assert same_numbers is (target not in changed) or not plain.model.get_parameter(target.name).any()


def test_exact_conversions_and_untouched_layers_are_not_calibrated() -> None:
    exact = rewire(tiny("granite"), "input-norm", calibrate=tokens())
    assert not [t for t in exact.targets if "calibrated" in t.note]
    part = rewire(tiny("post-norm", num_hidden_layers=4), "input-norm", "2", calibrate=tokens())
    layers = {t.name.split(".")[2] for t in part.targets if "calibrated" in t.note}
    assert layers
    assert layers <= {"2", "3"}
