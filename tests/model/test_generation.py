"""Generation with a cache gives what generation without one gives, for every kind of design."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from sublayer.model import SublayerForCausalLM, SublayerModel
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
