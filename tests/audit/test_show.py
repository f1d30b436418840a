"""The text of an audit: short, whole, and honest about what is unknown."""

import json
from dataclasses import replace

import pytest

from sublayer.audit import Audit, AuditError
from sublayer.audit.phrases import grouped, numbers, standing
from sublayer.audit.result import BranchFacts, NormFacts
from sublayer.notation import parse
from tests.audit.made_up import BROKEN, RMSNORM, audit, llama, stack, with_layers


def test_a_llama_fits_on_a_screen() -> None:
    text = str(llama())
    assert len(text.splitlines()) <= 20
    for part in (
        "meta-llama/Llama-3.1-8B: input-norm",
        "32 layers, d = 4096",
        "layers 0-31: x = x + attn(norm(x)); x = x + ffn(norm(x))",
        "embed: x = e",
        "final: x = norm(x)",
        "32 heads of 128, 8 key-value heads",
        "14336 wide (3.5d), gated, silu",
        "norm: rmsnorm, eps 1e-06, gain",
        "findings: none",
    ):
        assert part in text


def test_equal_key_value_heads_and_defaults_are_not_told() -> None:
    text = str(audit("post-norm"))
    assert "12 heads of 64" in text
    for silent in ("key-value", "QK-norm", "projection", "gated"):
        assert silent not in text


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ({"output_projection": False}, "no output projection W_o"),
        ({"qk_norm": "head"}, "QK-norm per head"),
        ({"qk_norm": "full"}, "QK-norm over all heads"),
        ({"gated": True}, "output gated"),
    ],
)
def test_what_attention_has_is_told(details: dict[str, object], said: str) -> None:
    assert said in str(audit("post-norm", details={"attn": details}))


def test_kind_and_eps_of_the_qk_norm_are_told() -> None:
    one = audit("input-norm", norm=RMSNORM, details={"attn": {"qk_norm": "head"}})
    norms = (*one.stacks[0].layers[0].norms, NormFacts("layernorm", 1e-5, "gain", "query or key"))
    text = str(with_layers(one, range(12), norms=norms))
    assert "QK-norm per head: layernorm, eps 1e-05, gain" in text
    assert "norm: rmsnorm, eps 1e-06, gain" in text, "a norm inside attention is not one of the equation"


def test_layers_that_differ_are_told_apart() -> None:
    text = str(audit("mix-ln"))
    assert "layers 0-2: x = norm(x + attn(x)); x = norm(x + ffn(x))" in text
    assert "layers 3-11: x = x + attn(norm(x)); x = x + ffn(norm(x))" in text


def test_a_fact_of_some_layers_names_them() -> None:
    one = audit("input-norm")
    branches = one.stacks[0].layers[0].branches
    wide = (branches[0], replace(branches[1], details={**branches[1].details, "width": 9999, "ratio": None}))
    text = str(with_layers(one, range(1, 12, 2), branches=wide))
    assert text.count("layers 0-11: ") == 1
    assert "3072 wide (4d), gelu  (layers 0, 2, ..., 10)" in text
    assert "9999 wide, gelu  (layers 1, 3, ..., 11)" in text


def test_widths_that_all_differ_are_not_a_list() -> None:
    one = audit("input-norm", depth=28)
    for i in range(28):
        branch = BranchFacts("ffn", details={"width": 100 + i}, reads=768, writes=768)
        one = with_layers(one, range(i, i + 1), branches=(branch,))
    text = str(one)
    assert "25 more forms in layers 3-27" in text
    assert len(text.splitlines()) < 20


def test_norms_of_several_kinds_name_their_places() -> None:
    one = audit("input-norm", norm=RMSNORM)
    other = tuple(replace(n, kind="layernorm", eps=1e-5) for n in one.stacks[0].layers[0].norms)
    text = str(with_layers(one, range(2), norms=other))
    assert "norm: rmsnorm, eps 1e-06, gain" in text
    assert "norm: layernorm, eps 1e-05, gain  (input of attn, input of ffn in layers 0-1)" in text


def test_unknown_layers_say_why_and_what_is_known() -> None:
    text = str(with_layers(audit("input-norm"), range(3, 5), equation="", design=None, unknown="a mask is learned"))
    assert "layers 3-4: unknown, because a mask is learned" in text
    assert text.count("12 heads of 64") == 2, "heads are told although the wiring is not"


def test_an_audit_of_nothing_says_why() -> None:
    text = str(Audit("Strange", (), unknown="no output depends on the input"))
    assert text == "Strange: unknown, because no output depends on the input"
    assert "findings: none" not in text, "nothing was looked at"
    with pytest.raises(AuditError, match="no output depends"):
        Audit("Strange", (), unknown="no output depends on the input").svg()


def test_encoder_and_decoder_stand_apart() -> None:
    decoder = "x = x + attn(norm(x)); x = x + cross(norm(x)); x = x + ffn(norm(x))"
    text = str(Audit("T5", (stack("t5", 6, name="encoder"), stack(decoder, 6, name="decoder"))))
    assert "encoder: input-norm" in text
    assert "decoder: no named design" in text
    assert "  layers 0-5: " + decoder in text


def test_what_is_in_vain_shared_or_assumed_is_told() -> None:
    one = with_layers(audit("post-norm"), range(1, 12), shares=0, notes=("a constant is added",))
    one = replace(
        one,
        dead_parameters=tuple(f"encoder.layers.{i}.ln.{n}" for i in range(12) for n in ("weight", "bias")),
        dead_inputs=("token_type_ids",),
        assumptions=("every expert is chosen once",),
        findings=(BROKEN,),
    )
    text = str(with_layers(one, range(2), dropped=(BranchFacts("ffn", "layers.0.mlp"),)))
    for part in (
        "shared: layers 1-11 use the parameters of layer 0",
        "note  ",
        "a constant is added  (layers 1-11)",
        "ffn (mlp) is computed and reaches no output  (layers 0-1)",
        "parameters that nothing reads (24): encoder.layers.0-11.ln.{weight, bias}",
        "inputs that change nothing: token_type_ids",
        "assumed: every expert is chosen once",
        "error: layers 0-11, attn: the residual is taken from the normed value. [residual-from-norm]",
    ):
        assert part in text


def test_factors_are_fixed_or_learned() -> None:
    assert "attn and ffn: what they add is multiplied by 0.22 (fixed)" in str(audit("granite"))
    assert "attn and ffn: what they add is scaled per channel (scale) (learned)" in str(audit("layerscale"))


@pytest.mark.parametrize(
    ("text", "name", "apart"),
    [
        ("x = x + attn(norm(x)); x = x + ffn(norm(x))", "input-norm", ""),
        ("embed: x = 12*e\nblock: x = x + attn(norm(x)); x = x + ffn(norm(x))", "input-norm", "the factor 12"),
        ("embed: x = norm(12*e)\nblock: x = norm(x + attn(x)); x = norm(x + ffn(x))", "bert", "the factor 12"),
        ("block: x = x + attn(norm(x)); x = x + ffn(norm(x))\nfinal: x = x", "input-norm", "final: x = x"),
        ("x = x + attn(norm(x)) + moe(norm(x))", None, ""),
    ],
)
def test_where_a_design_stands(text: str, name: str | None, apart: str) -> None:
    names, difference = standing(parse(text))
    assert (names[0] if names else None) == name
    assert apart in difference
    assert bool(apart) == bool(difference)


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        (range(12), "0-11"),
        ([3], "3"),
        (range(0, 24, 2), "0, 2, ..., 22"),
        ([0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17], "0-2, 4-6, ..., 16-17"),
        ([1, 3, 4, 9, 20, 21], "1, 3-4, 9, 20-21"),
    ],
)
def test_numbers_of_layers(indices: list[int], said: str) -> None:
    assert numbers(indices) == said


def test_names_are_gathered() -> None:
    names = [f"h.{i}.experts.{j}.w" for i in range(4) for j in range(8)] + ["wte.weight", "h.0.b", "h.2.b"]
    assert grouped(names) == ["h.0-3.experts.0-7.w", "wte.weight", "h.{0, 2}.b"]
    assert grouped(["a", "b", "c.x.w", "c.x.b"]) == ["a", "b", "c.x.{w, b}"]
    assert grouped(["a.0.b.0.c", "a.0.b.1.c", "a.1.b.0.c"]) == ["a.0.b.0-1.c", "a.1.b.0.c"]
    assert grouped([]) == []


@pytest.mark.parametrize("one", [llama(), audit("mix-ln"), audit("residual"), Audit("Strange", (), unknown="why")])
def test_json_round_trips(one: Audit) -> None:
    one = replace(one, findings=(BROKEN,), seconds=0.5)
    text = json.dumps(one.to_dict(), allow_nan=False)
    assert json.loads(text)["format"] == 1
    assert Audit.from_dict(json.loads(text)) == one


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(format=2),
        lambda d: d.pop("target"),
        lambda d: d.update(stacks=3),
        lambda d: d["stacks"][0].update(width="wide"),
        lambda d: d["stacks"][0].update(strange=1),
        lambda d: d["stacks"][0]["layers"][0].update(design="x = nothing(x)"),
        lambda d: d["stacks"][0]["layers"][0]["norms"][0].update(eps=True),
        lambda d: d["findings"][0].update(severity="fatal"),
    ],
)
def test_a_damaged_record_is_refused(damage) -> None:  # type: ignore[no-untyped-def]
    record = json.loads(json.dumps(replace(audit("input-norm"), findings=(BROKEN,)).to_dict()))
    damage(record)
    with pytest.raises(AuditError):
        Audit.from_dict(record)


@pytest.mark.parametrize("record", [None, [], "text", 3, {}, {"format": 1}])
def test_what_is_no_record_is_refused(record: object) -> None:
    with pytest.raises(AuditError):
        Audit.from_dict(record)


def test_frame_has_a_row_a_layer() -> None:
    frame = llama().to_frame()
    assert len(frame) == 32
    assert set(frame["attn_kv_heads"]) == {8}
    assert set(frame["ffn_width"]) == {14336}


def test_notebooks_get_a_picture_and_escaped_text() -> None:
    page = replace(llama(), target="<b>")._repr_html_()
    assert "<svg" in page
    assert "&lt;b&gt;: input-norm" in page
    assert "<pre" in Audit("Strange", (), unknown="why")._repr_html_()
