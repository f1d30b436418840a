"""Generation with a cache gives what generation without one gives, for every kind of design."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StaticCache

from sublayer.model import SublayerForCausalLM, SublayerModel
from sublayer.model.columns import growth
from tests.model.support import VARIED, same, tiny, tokens

PADDED = (torch.tensor([[0, 0, 5, 8, 3], [2, 9, 4, 1, 7]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]))


def generate(model: SublayerForCausalLM, **settings: object) -> Tensor:
    ids, mask = PADDED
    return model.generate(ids, attention_mask=mask, max_new_tokens=8, pad_token_id=0, **settings)


@pytest.mark.parametrize("position_embedding", ["learned", "rotary"])
@pytest.mark.parametrize("design", VARIED.values(), ids=VARIED)
def test_greedy_generation_is_the_same_with_every_cache(design: str, position_embedding: str) -> None:
    model = tiny(design, position_embedding=position_embedding, num_key_value_heads=2)
    plain = generate(model, do_sample=False, use_cache=False)
    assert plain.shape == (2, 13)
    assert torch.equal(generate(model, do_sample=False), plain)
    assert torch.equal(generate(model, do_sample=False, cache_implementation="static"), plain)


@pytest.mark.parametrize("design", VARIED.values(), ids=VARIED)
def test_sampled_and_beam_generation_are_the_same_with_a_cache(design: str) -> None:
    model = tiny(design)
    for settings in ({"do_sample": True}, {"do_sample": False, "num_beams": 3}):
        results = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            results.append(generate(model, use_cache=use_cache, **settings))
        assert torch.equal(*results)


def test_a_padded_prompt_continues_as_it_does_alone() -> None:
    model = tiny("residual", position_embedding="learned")
    together = generate(model, do_sample=False)
    alone = model.generate(PADDED[0][:1, 2:], max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(together[:1, 2:], alone)


@pytest.mark.parametrize("design", VARIED.values(), ids=VARIED)
def test_token_by_token_gives_the_logits_of_the_whole(design: str) -> None:
    model = tiny(design)
    ids = tokens()
    whole, cache, steps = model(ids).logits, None, []
    for piece in (ids[:, :3], ids[:, 3:4], ids[:, 4:]):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    assert cache.get_seq_length() == 7
    assert same(torch.cat(steps, 1), whole)


@pytest.mark.parametrize(
    ("design", "calls"),
    [
        ("x = x + attn(norm(x)); x = x + ffn(norm(x))", 3),
        ("x = x + attn_a(x); x = x + attn_a(norm(x)) + dot(x)", 9),
        ("block[:1]: x = x + ffn(x)\nblock[1:]: x = x + attn(x) + dot(x)", 4),
        ("embed: x = attn(e)\nblock: x = ffn(x)\nfinal: x = dot(x)", 2),
        ("x = x + ffn(norm(x))", 0),
    ],
)
def test_the_cache_has_an_entry_for_each_attention_call(design: str, calls: int) -> None:
    """Two calls that share parameters still have keys of their own."""
    model = tiny(design)
    assert model.model.cache_slots == calls
    for cache in (DynamicCache(config=model.config), DynamicCache(), StaticCache(model.config, max_cache_len=9)):
        model(tokens(), past_key_values=cache)
        filled = [layer for layer in cache.layers if layer.is_initialized]
        assert len(filled) == max(calls, 1)  # without attention, one entry counts the tokens
        assert cache.get_seq_length() == 7


def test_a_cache_of_another_model_is_refused() -> None:
    cache = tiny("input-norm")(tokens(), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="3 entries, but this design calls attention 6 times"):
        tiny("x = x + attn(x); x = x + attn(x)")(tokens(), past_key_values=cache)


def test_continuing_from_a_returned_cache() -> None:
    model = tiny("residual")
    first = model.generate(tokens(1), max_new_tokens=4, do_sample=False, return_dict_in_generate=True, pad_token_id=0)
    longer = torch.cat((first.sequences, tokens(1, 2, seed=5)), 1)
    continued = model.generate(longer, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    assert torch.equal(continued, model.generate(longer, max_new_tokens=4, do_sample=False, use_cache=False))


def test_no_cache_where_none_makes_sense() -> None:
    assert tiny("input-norm", SublayerModel, causal=False)(tokens()).past_key_values is None
    assert tiny("input-norm", SublayerModel, use_cache=False)(tokens()).past_key_values is None
    assert tiny("input-norm", SublayerModel)(tokens()).past_key_values is not None


def test_logits_to_keep() -> None:
    model = tiny("input-norm")
    whole = model(tokens()).logits
    assert same(model(tokens(), logits_to_keep=2).logits, whole[:, -2:])
    assert same(model(tokens(), logits_to_keep=torch.tensor([0, 3])).logits, whole[:, [0, 3]])


def test_embeddings_can_stand_in_for_ids() -> None:
    model = tiny("residual")
    embeds = model.get_input_embeddings()(tokens())
    assert torch.equal(model(inputs_embeds=embeds).logits, model(tokens()).logits)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(inputs_embeds=embeds, **settings), model.generate(tokens(), **settings)[:, 7:])
    for inputs in ({}, {"input_ids": tokens(), "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**inputs)


def test_more_tokens_than_learned_positions_are_refused() -> None:
    model = tiny("input-norm", max_position_embeddings=8)
    model(tokens(length=8))
    with pytest.raises(ValueError, match=r"9 tokens exceed max_position_embeddings \(8\)"):
        model(tokens(length=9))
    tiny("input-norm", max_position_embeddings=8, position_embedding="rotary")(tokens(length=9))


# -- growing without copies, weights by columns ----------------------------------------------------------------------


def test_a_cache_grows_in_the_room_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same keys, values and logits as with a copy for each token, and few copies."""
    model, text = tiny("residual"), tokens(2, 40)

    def fed(cache: DynamicCache) -> tuple[list[torch.Tensor], set[int]]:
        logits, places = [], set()
        for step in range(text.shape[1]):
            logits.append(model(text[:, step : step + 1], past_key_values=cache).logits)
            places.add(cache.layers[0].keys.data_ptr())
        return logits, places

    monkeypatch.setattr("sublayer.model.cache.SPARE", 8)
    with torch.enable_grad():
        copied = DynamicCache()
        expected, _ = fed(copied)
    with torch.no_grad():
        grown = DynamicCache()
        found, places = fed(grown)
    assert len(places) <= 6
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for one, other in zip(grown.layers, copied.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@torch.no_grad()
def test_caches_that_part_do_not_write_into_each_other() -> None:
    model, text = tiny("residual"), tokens(1, 9)
    first = DynamicCache()
    model(text, past_key_values=first)
    model(tokens(1, 1, seed=3), past_key_values=first)  # now it has room
    kept = first.layers[0].keys.clone()
    other = copy.deepcopy(first)
    wanted = []
    for seed, cache in ((5, first), (6, other)):
        more = tokens(1, 3, seed=seed)
        wanted.append(model(torch.cat((text, tokens(1, 1, seed=3), more), 1), use_cache=False).logits[:, -3:])
        assert same(model(more, past_key_values=cache).logits, wanted[-1])
    assert torch.equal(first.layers[0].keys[..., :10, :], kept)
    for cache in (first, other):  # cut back, and grown again
        cache.crop(-3)
        assert same(model(tokens(1, 3, seed=5), past_key_values=cache).logits, wanted[0])
    first.batch_repeat_interleave(2)
    first.crop(-3)
    assert same(model(tokens(1, 3, seed=6).repeat(2, 1), past_key_values=first).logits[:1], wanted[1])


def test_a_cache_of_inference_mode_can_be_continued_outside_of_it() -> None:
    model, text = tiny("residual"), tokens(1, 9)
    cache = DynamicCache()
    with torch.inference_mode():
        for step in range(6):
            model(text[:, step : step + 1], past_key_values=cache)
    with torch.no_grad():
        last = model(text[:, 6:], past_key_values=cache).logits
    assert same(last, model(text).logits[:, 6:])


@pytest.mark.parametrize("design", ["residual", "x = x + attn(norm(x)) + ffn(norm(x))"])
def test_weights_lie_by_columns_while_tokens_are_made_and_by_rows_afterwards(design: str) -> None:
    model = tiny(design, tie_word_embeddings=True, max_position_embeddings=128)
    before = {name: (weight.data_ptr(), weight.stride()) for name, weight in model.named_parameters()}
    up, seen = model.model.layers[0].ffn.up_proj, []
    handle = model.lm_head.register_forward_pre_hook(lambda *_: seen.append(up.weight.stride()))
    short = model.generate(tokens(1), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert set(seen) == {(up.in_features, 1)}
    seen.clear()
    long = model.generate(tokens(1), max_new_tokens=64, do_sample=False, pad_token_id=0)
    handle.remove()
    assert set(seen) == {(1, up.out_features)}
    assert torch.equal(long[:, : short.shape[1]], short)
    assert {name: (weight.data_ptr(), weight.stride()) for name, weight in model.named_parameters()} == before
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(tokens(1), max_new_tokens=-100)
    with pytest.raises(ZeroDivisionError):
        model.generate(tokens(1), max_new_tokens=64, logits_processor=[lambda *_: 1 / 0])
    assert {name: (weight.data_ptr(), weight.stride()) for name, weight in model.named_parameters()} == before


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"max_new_tokens": 9}, (2, 9)),
        ({"max_length": 9}, (2, 2)),
        ({"max_new_tokens": 9, "num_beams": 3}, (6, 9)),
        ({"max_new_tokens": 9, "num_return_sequences": 4}, (8, 9)),
        ({}, (2, 13)),
    ],
)
def test_how_much_will_be_generated(given: dict[str, int], found: tuple[int, int]) -> None:
    settings = GenerationConfig(max_length=20)
    assert growth(tokens(2), settings, given) == found
    assert growth(None, settings, {"input_ids": tokens(2), **given}) == found
    assert growth(None, settings, {"inputs_embeds": torch.zeros(2, 7, 4), **given}) == found
