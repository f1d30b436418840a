"""What moved between two wirings, in words."""

from dataclasses import replace

import pytest

from sublayer.audit import Audit
from sublayer.audit.diff import Diff, diff
from sublayer.audit.result import BranchFacts, NormFacts
from sublayer.audit.sides import is_design
from sublayer.notation import DesignError, designs, parse
from tests.audit.made_up import LAYERNORM, RMSNORM, audit, stack, with_layers


def words(found: Diff) -> list[str]:
    return [phrase for move in found.moved for phrase in move.phrases]


def test_the_example_of_the_issue() -> None:
    before = audit("bert", "Old")
    after = audit(
        "embed: x = norm(e)\nblock: x = x + norm(attn(x)); x = x + norm(ffn(x))\nfinal: x = x",
        "New",
        details={"attn": {"output_projection": False}, "ffn": {"width": 768, "ratio": 1.0}},
    )
    found = diff(before, after)
    (move,) = found.moved
    assert move.place == "layers 0-11"
    assert move.phrases == (
        "the norms after attention and FFN moved from the sums to the branches",
        "W_o is gone",
        "FFN 4d -> d",
    )
    text = str(found)
    for part in ("A  Old", "B  New", "layers 0-11:", "x = norm(x + attn(x))", "x = x + norm(attn(x))"):
        assert part in text


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("post-norm", "output-norm", "the norms after attention and FFN moved from the sums to the branches"),
        (
            "post-norm",
            "x = x + norm(attn(x)); x = norm(x + ffn(x))",
            "the norm after attention moved from the sum to the",
        ),
        ("post-norm", "input-norm", "the norms of attention and FFN moved from the sums to their inputs"),
        ("input-norm", "output-norm", "moved from their inputs to their outputs, on the branches"),
        ("input-norm", "sandwich", "the norms on the branches after attention and FFN are new"),
        ("sandwich", "normformer", "the norm on the branch after FFN is gone"),
        ("post-norm", "paf", "attention and FFN moved from series to parallel"),
        ("paf", "post-norm", "attention and FFN moved from parallel to series"),
        ("parallel-two-norms", "parallel-one-norm", "attention and FFN read one norm now"),
        ("parallel-one-norm", "parallel-two-norms", "attention and FFN no longer read one norm"),
        ("input-norm", "attention-only", "FFN is gone"),
        ("attention-only", "input-norm", "FFN is new"),
        ("input-norm", "x = x + attn(norm(x)); x = x + moe(norm(x))", "FFN became a mixture of experts"),
        ("input-norm", "x = x + mixer(norm(x)); x = x + ffn(norm(x))", "attention became a mixer"),
        ("input-norm", "x = x + ffn(norm(x)); x = x + attn(norm(x))", "the order is now FFN, attention"),
        ("llama", "granite", "attention and FFN: what they add is now multiplied by 0.22"),
        ("granite", "llama", "what they add is no longer multiplied by 0.22"),
        ("granite", "minicpm", "multiplied by 0.22 -> 1.4/sqrt(depth)"),
        ("layerscale", "input-norm", "what they add is no longer scaled per channel"),
        ("post-norm", "b2t", "the residual is"),
        ("no-norm", "pure-attention", "attention has no residual any more"),
        ("input-norm", "n = norm(x); x = n + attn(n); m = norm(x); x = m + ffn(m)", "now taken after the norm"),
        ("input-norm", "x = x + attn(norm(norm(x))); x = x + ffn(norm(x))", "the block has 3 norms instead of 2"),
        ("input-norm", "x = x + attn(norm_a(x)); x = x + ffn(norm_a(x))", "one norm is now used more than once"),
        ("input-norm", "x = x + attn(rmsnorm(x)); x = x + ffn(norm(x))", "norm became rmsnorm in the equation"),
        ("bert", "post-norm", "the norm on the embedding is gone"),
        ("post-norm", "bert", "the norm on the embedding is new"),
        ("input-norm", "block: x = x + attn(norm(x)); x = x + ffn(norm(x))\nfinal: x = x", "the last norm is gone"),
        ("post-norm", "residual", "the carried stream r is new"),
        (
            "x = x + attn(norm(x))",
            "embed: x = 3*e\nblock: x = x + attn(norm(x))",
            "the embedding is multiplied by 3 now",
        ),
    ],
)
def test_words_for_what_moved(a: str, b: str, said: str) -> None:
    if said == "the residual is":  # a bypass has no one phrase: it only must not be called equal
        assert diff(a, b)
        return
    assert any(said in phrase for phrase in words(diff(a, b))), str(diff(a, b))
    assert any(said in phrase for phrase in words(diff(audit(a), audit(b)))), "models say it as designs do"


def test_two_designs_are_equal_in_words_only_if_they_are() -> None:
    """Designs of the catalogue with themselves and their neighbours: no difference is unsaid; equal ones have none."""
    catalogue = list({str(parse(e.name)): parse(e.name) for e in designs()}.values())
    for k, a in enumerate(catalogue):
        for b in catalogue[k : k + 6]:
            found = diff(a, b)
            assert found.same == (a == b), f"{a} / {b}"
            assert bool(found) != (a == b)
            assert all(move.phrases for move in found.moved)


@pytest.mark.parametrize("entry", designs(), ids=lambda e: e.name)
def test_a_model_agrees_with_its_design(entry) -> None:  # type: ignore[no-untyped-def]
    found = diff(audit(entry.name), entry.name)
    assert found.same, str(found)
    assert "a design says nothing of heads" in str(found)


def test_ranges_in_other_words_are_one_wiring_at_the_depth_of_the_model() -> None:
    text = str(parse("mix-ln")).replace("25%", "3")
    assert diff(audit(text, depth=12), "mix-ln").same
    assert not diff(audit(text, depth=24), "mix-ln").same


def test_layers_that_differ_are_named() -> None:
    found = diff(audit("mix-ln"), audit("input-norm"))
    assert [move.place for move in found.moved] == ["layers 0-2"]


# --- facts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "before", "after", "said"),
    [
        ("attn", {"kv_heads": 12}, {"kv_heads": 4}, "attention, key-value heads: 12 -> 4"),
        ("attn", {"heads": 12}, {"heads": 16}, "attention, heads: 12 -> 16"),
        ("attn", {"qk_norm": "none"}, {"qk_norm": "head"}, "attention: no QK-norm -> QK-norm per head"),
        ("attn", {"gated": False}, {"gated": True}, "attention is gated now"),
        ("attn", {"output_projection": False}, {"output_projection": True}, "W_o is new"),
        ("ffn", {"gated": True}, {"gated": False}, "FFN is no longer gated"),
        ("ffn", {"ratio": 4.0, "width": 3072}, {"ratio": 1.0, "width": 768}, "FFN 4d -> d"),
        ("ffn", {"activation": "gelu"}, {"activation": "silu"}, "FFN, activation: gelu -> silu"),
        ("ffn", {"ratio": None, "width": 3072}, {"ratio": None, "width": None}, "FFN, width: 3072 -> unknown"),
        ("ffn", {"inner_norm": False}, {"inner_norm": True}, "a norm inside FFN is new"),
    ],
)
def test_words_for_facts(op: str, before: dict[str, object], after: dict[str, object], said: str) -> None:
    found = diff(audit("input-norm", details={op: before}), audit("input-norm", details={op: after}))
    assert words(found) == [said]
    assert f"layers 0-11: {said}" in str(found)


def test_a_norm_of_another_kind_is_told_once() -> None:
    found = diff(audit("input-norm", norm=LAYERNORM), audit("input-norm", norm=RMSNORM))
    said = {"norms: layernorm -> rmsnorm", "norms: eps 1e-12 -> 1e-06", "norms: learns gain and offset -> gain"}
    (layers, final) = found.moved
    assert set(layers.phrases) == said
    assert final.place == "final"
    assert "its norm: layernorm -> rmsnorm" in final.phrases


def test_a_norm_of_another_kind_is_told_when_it_moved_too() -> None:
    found = diff(audit("post-norm", norm=LAYERNORM), audit("input-norm", norm=RMSNORM))
    assert "norms: layernorm -> rmsnorm" in words(found)


def test_one_norm_of_another_kind_names_its_place() -> None:
    one = audit("input-norm")
    norms = list(one.stacks[0].layers[0].norms)
    norms[1] = replace(norms[1], kind="rmsnorm")
    found = diff(one, with_layers(one, range(2, 4), norms=tuple(norms)))
    assert [(m.place, m.phrases) for m in found.moved] == [
        ("layers 2-3", ("norm, input of ffn: layernorm -> rmsnorm",))
    ]


def test_names_of_modules_count_for_nothing() -> None:
    one = audit("input-norm")
    layer = one.stacks[0].layers[0]
    branches = tuple(replace(b, module="elsewhere", parameters=("w",)) for b in layer.branches)
    norms = tuple(replace(n, module="elsewhere", parameters=("g",)) for n in layer.norms)
    assert diff(one, with_layers(one, range(12), module="other", branches=branches, norms=norms)).same


def test_size_of_the_model() -> None:
    found = diff(audit("input-norm"), audit("input-norm", depth=24, width=1024))
    assert found.moved[0].phrases == ("d 768 -> 1024", "number of layers 12 -> 24")
    assert len(found.moved) == 1, "the layers that are more are like the others"


def test_layers_that_only_one_has() -> None:
    longer = audit("block[:12]: x = x + attn(norm(x))\nblock[12:]: x = x + ffn(norm(x))", depth=14)
    found = diff(audit("attention-only", depth=12), longer)
    assert "layers 12-13: only in B: x = x + ffn(norm(x))" in str(found)


def test_sharing_notes_and_what_is_dropped() -> None:
    one = audit("input-norm")
    other = with_layers(one, range(1, 12), shares=0, notes=("a mask is multiplied in",))
    other = with_layers(other, range(1, 12), dropped=(BranchFacts("ffn"),))
    assert set(words(diff(one, other))) == {
        "it uses the parameters of layer 0 now",
        "now: a mask is multiplied in",
        "FFN is computed and reaches no output now",
    }


def test_what_is_in_vain() -> None:
    one = audit("input-norm")
    other = replace(one, dead_parameters=("layers.0.w", "layers.1.w"), dead_inputs=("attention_mask",))
    text = str(diff(one, other))
    assert "input attention_mask no longer changes the output" in text
    assert "parameters that nothing reads: 0 -> 2 (new: layers.0-1.w)" in text
    assert diff(other, one)


def test_encoders_and_decoders_are_paired() -> None:
    decoder = "x = x + attn(norm(x)); x = x + cross(norm(x)); x = x + ffn(norm(x))"
    both = Audit("T5", (stack("t5", 6, name="encoder"), stack(decoder, 6, name="decoder")))
    changed = Audit("Mine", (stack("output-norm", 6, name="encoder"), stack(decoder, 6, name="decoder")))
    assert {move.stack for move in diff(both, changed).moved} == {"encoder"}
    alone = diff(both, audit(decoder, depth=6))
    assert "encoder, model: 6 layers that only A has" in str(alone)
    assert diff(both, both).same
    assert any("compared with decoder" in text for text in diff(both, decoder).remarks)


# --- what is unknown ----------------------------------------------------------------------------------------------


def test_unknown_is_never_equal() -> None:
    dark = with_layers(audit("input-norm"), range(3, 5), equation="", design=None, unknown="it scans")
    for a, b in ((dark, dark), (dark, audit("input-norm")), (audit("input-norm"), dark), (dark, "input-norm")):
        found = diff(a, b)
        assert found
        assert not found.same
        assert "layers 3-4" in str(found)
        assert "it scans" in str(found)
        assert "the same" not in str(found)
    assert "no difference in what is known" in str(diff(dark, dark))


def test_facts_of_unknown_layers_are_still_compared() -> None:
    def dark(heads: int) -> Audit:
        one = audit("input-norm", details={"attn": {"heads": heads}})
        return with_layers(one, range(12), equation="", design=None, unknown="it scans")

    assert words(diff(dark(12), dark(16))) == ["attention, heads: 12 -> 16"]


def test_an_end_that_could_not_be_read_is_unknown() -> None:
    one = audit("input-norm")
    dark = replace(one, stacks=(replace(one.stacks[0], final="", design=None, unknown="it pools"),))
    assert "final: could not be read in B" in diff(one, dark).unknown
    assert diff(dark, dark).unknown


def test_a_model_of_which_nothing_is_known() -> None:
    strange = Audit("Strange", (), unknown="it does not run")
    for other in (strange, audit("input-norm"), "input-norm"):
        assert "it does not run" in str(diff(strange, other))
        assert not diff(strange, other).same


def test_a_design_that_does_not_fit_the_depth() -> None:
    found = diff(audit("input-norm", depth=4), "block[:6]: x = attn(x)\nblock[6:]: x = ffn(x)")
    assert found.unknown
    assert "does not fit 4 layers" in str(found)


# --- what is given ------------------------------------------------------------------------------------------------


def test_a_string_is_a_design_or_a_model(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert is_design("post-norm")
    assert is_design("x = attn(x)")
    assert is_design("pre-norm"), "refused with both meanings, as everywhere"
    assert not is_design("openai-community/gpt2")
    assert not is_design("package.module:make")
    assert not is_design("somebody/llama")
    (tmp_path / "bert").mkdir()
    assert not is_design("bert")
    with pytest.raises(DesignError, match="two designs"):
        diff("pre-norm", "post-norm")


def test_json_says_the_same() -> None:
    record = diff("post-norm", "output-norm").to_dict()
    assert record["same"] is False
    assert record["moved"][0]["place"] == "block"
    assert record["moved"][0]["phrases"]
    assert diff("paf", "paf").to_dict()["same"] is True


def test_norm_kinds_at_places_only_one_side_has_are_told() -> None:
    one = audit("input-norm")
    more = (*one.stacks[0].layers[0].norms, NormFacts("rmsnorm", 1e-6, "gain", "inside ffn"))
    assert words(diff(one, with_layers(one, range(12), norms=more))) == ["norms inside ffn: 0 -> 1"]
