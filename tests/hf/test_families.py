"""Every family, in every wiring that it has: the Sublayer model computes what transformers' model computes."""

import copy
import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from sublayer.hf import FAMILIES, CheckpointError, load
from sublayer.hf.translation import HARMLESS, settings_of
from sublayer.model import SublayerBlock, SublayerPreTrainedModel
from sublayer.notation import Design
from sublayer.notation.program import Call, Section
from tests.hf.support import CASES, Case, padding, relative_error, tiny, tokens

TOLERANCE = 1e-5
VISIBLE = 1e-3  # what a wrong weight map moves at the least


ONE_NORM = "h = norm(x); a = attn(h); x = x + a + ffn(h + a)"


@cache
def pair(name: str) -> tuple[Case, PreTrainedModel, SublayerPreTrainedModel]:
    """A model of transformers and the same as a Sublayer model; not to be changed."""
    case = CASES[name]
    theirs = tiny(case)
    return case, theirs, load(theirs)


@torch.no_grad()
def logits(model: Any, ids: Tensor, **more: Any) -> Tensor:
    result: Tensor = model(ids, **more).logits
    return result


def test_every_family_has_a_case_and_a_place_in_the_docs(root: Path) -> None:
    assert {case.model_type for case in CASES.values()} == set(FAMILIES)
    table = (root / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    named = {word for line in table.splitlines() if line.startswith("| ") for word in re.findall(r"[\w-]+", line)}
    assert set(FAMILIES) <= named


OTHERS = {bool: lambda v: not v, int: lambda v: v + 4, float: lambda v: 2 * v + 0.5, type(None): lambda v: 3}


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_no_field_of_a_config_is_passed_over(model_type: str) -> None:
    """Another value changes the settings or is refused, in one wiring at least, or changes no output as is known."""
    family = FAMILIES[model_type]
    cases = [case for case in CASES.values() if case.model_type == model_type]
    known = HARMLESS | family.harmless | {*PreTrainedConfig.__dataclass_fields__}
    tried = 0
    for item in dataclasses.fields(cases[0].config()):
        values = [getattr(case.config(), item.name, None) for case in cases]
        if item.name in known or item.name.endswith("_plan") or type(values[0]) not in OTHERS:
            continue
        tried += 1
        assert any(noticed(case, item.name, value) for case, value in zip(cases, values, strict=True)), item.name
    assert tried > 5


def noticed(case: Case, name: str, value: Any) -> bool:
    config = case.config()
    before = settings_of(FAMILIES[case.model_type], config)
    try:
        setattr(config, name, OTHERS[type(value)](value))
        return settings_of(FAMILIES[case.model_type], config) != before
    except Exception:  # refused, by the family or by transformers
        return True


@pytest.mark.parametrize("name", CASES)
def test_logits_and_hidden_states(name: str) -> None:
    _, theirs, ours = pair(name)
    ids = tokens()
    with torch.no_grad():
        want, got = theirs(ids, output_hidden_states=True), ours(ids, output_hidden_states=True)
    assert relative_error(got.logits, want.logits) < TOLERANCE
    assert len(got.hidden_states) == len(want.hidden_states) == ours.config.num_hidden_layers + 1
    for i, (left, right) in enumerate(zip(got.hidden_states, want.hidden_states, strict=True)):
        if left.shape != right.shape:  # OPT's last one stands behind the projection to the width of the tokens
            assert i == ours.config.num_hidden_layers
            assert ours.config.embedding_size != ours.config.hidden_size
            continue
        assert relative_error(left, right) < TOLERANCE, i


@pytest.mark.parametrize("name", CASES)
def test_the_other_attention_backend(name: str) -> None:
    _, theirs, ours = pair(name)
    other = copy.deepcopy(ours)
    other.set_attn_implementation("eager" if ours.config._attn_implementation == "sdpa" else "sdpa")
    assert relative_error(logits(other, tokens()), logits(theirs, tokens())) < 1e-4  # rounding in another order


@pytest.mark.parametrize("name", CASES)
def test_the_auditor_reads_the_same_wiring_from_both(name: str) -> None:
    from sublayer.audit import audit

    _, theirs, ours = pair(name)
    read = [audit(model).main for model in (theirs, ours)]
    assert all(stack is not None and stack.design is not None for stack in read)
    # A projection before the layers has a name in neither: only its place is compared.
    left, right = (stack.design for stack in read)  # type: ignore[union-attr]
    assert left is not None
    assert right is not None
    assert (left.blocks, left.final) == (right.blocks, right.final)
    if ours.config.embedding_size in (None, ours.config.hidden_size):
        assert left == right


@pytest.mark.parametrize("name", CASES)
def test_cost_counts_every_parameter(name: str) -> None:
    from sublayer.cost import cost

    _, _, ours = pair(name)
    assert cost(ours.config).parameters == sum(p.numel() for p in ours.parameters())


@pytest.mark.parametrize("name", CASES)
def test_padding(name: str) -> None:
    case, theirs, ours = pair(name)
    ids = tokens(seed=1)
    mask = padding(case, ids)
    ids = ids.masked_fill(mask == 0, getattr(theirs.config, "pad_token_id", None) or 0)
    real = mask.bool()
    want, got = logits(theirs, ids, attention_mask=mask)[real], logits(ours, ids, attention_mask=mask)[real]
    assert relative_error(got, want) < TOLERANCE
    # The mask is not decoration: without it the numbers are others.
    assert relative_error(logits(ours, ids)[real], want) > VISIBLE


@pytest.mark.parametrize("name", [n for n in CASES if not CASES[n].masked])
def test_generation_with_cache(name: str) -> None:
    _, theirs, ours = pair(name)
    theirs = copy.deepcopy(theirs)  # transformers' dynamic angles remember the longest text
    ids = tokens(3, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False,
               "pad_token_id": 0}  # fmt: skip
    want, got = theirs.generate(ids, **options), ours.generate(ids, **options)
    assert got.shape == (3, ids.shape[1] + 32)
    assert torch.equal(got, want)
    if name != "llama-dynamic":  # whose angles change with each token, while kept keys stay as they were turned
        assert torch.equal(ours.generate(ids, **options, use_cache=False), want)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma3_text", "falcon-new"])
def test_gradients(name: str) -> None:
    from sublayer.hf.plan import make_plan
    from sublayer.hf.schema import schema_of

    case, theirs, ours = pair(name)
    theirs, ours = copy.deepcopy(theirs), copy.deepcopy(ours)
    ids = tokens()
    theirs(ids, labels=ids).loss.backward()
    ours(ids, labels=ids).loss.backward()
    plan = make_plan(
        FAMILIES[case.model_type], None, schema_of(theirs.config, "masked-lm" if case.masked else "causal-lm"), ours
    )
    want, got = dict(theirs.named_parameters()), dict(ours.named_parameters())
    compared = 0
    for move in plan.moves:
        grads = [want[n].grad for n in move.sources]
        mapped = move.forward(grads, ours.config, [got[n].shape[0] for n in move.targets])  # type: ignore[arg-type]
        for target, grad in zip(move.targets, mapped, strict=True):
            mine = got[target].grad
            assert mine is not None
            # Gradients that are zero but for rounding (a bias of keys) say nothing relative to themselves.
            scale = max(float(grad.abs().max()), 1e-3)
            assert float((mine - grad).abs().max()) / scale < 1e-4, target
            compared += 1
    assert compared == len(got)


# --- mutants: what the tests above must tell apart --------------------------------------------------------------------


def blocks(model: nn.Module) -> list[SublayerBlock]:
    return [m for m in model.modules() if isinstance(m, SublayerBlock)]


@pytest.mark.parametrize("name", CASES)
def test_queries_and_keys_exchanged_are_seen(name: str) -> None:
    _, theirs, ours = pair(name)
    mutant = copy.deepcopy(ours)
    for block in blocks(mutant):
        q, k = block.attn.q_proj, block.attn.k_proj  # type: ignore[union-attr]
        rows = min(q.weight.shape[0], k.weight.shape[0])  # type: ignore[union-attr, index]
        with torch.no_grad():
            for part in ("weight", "bias"):
                left, right = getattr(q, part), getattr(k, part)
                if left is not None:
                    kept = left[:rows].clone()
                    left[:rows].copy_(right[:rows])
                    right[:rows].copy_(kept)
    assert relative_error(logits(mutant, tokens()), logits(theirs, tokens())) > VISIBLE


@pytest.mark.parametrize("name", CASES)
def test_each_norm_left_out_is_seen(name: str) -> None:
    _, theirs, ours = pair(name)
    want = logits(theirs, tokens())
    norms = [n for n, _ in ours.named_modules() if n.endswith("norm") or n.rpartition(".")[2].startswith("stream_norm")]
    assert norms
    for path in norms:
        if ".0." not in path and any(c.isdigit() for c in path.split(".")):
            continue  # one layer stands for all
        mutant = copy.deepcopy(ours)
        owner, _, last = path.rpartition(".")
        setattr(mutant.get_submodule(owner), last, nn.Identity())
        assert relative_error(logits(mutant, tokens()), want) > VISIBLE, path


@pytest.mark.parametrize("name", CASES)
def test_series_and_parallel_exchanged_are_seen(name: str) -> None:
    _, theirs, ours = pair(name)
    mutant = rewired(ours)
    assert relative_error(logits(mutant, tokens()), logits(theirs, tokens())) > VISIBLE
    assert relative_error(logits(rewired(ours, keep=True), tokens()), logits(theirs, tokens())) < TOLERANCE


def rewired(model: SublayerPreTrainedModel, keep: bool = False) -> SublayerPreTrainedModel:
    """The same parts in the same order in the other of series and parallel; or as they were, to try this helper."""
    design = model.config.wiring
    text = "\n".join(
        [f"embed: {design.embed}"]
        + [f"block{r}: {s.text if keep else flipped(s)}" for r, s in design.blocks]
        + [f"final: {design.final}"]
    )
    config = copy.deepcopy(model.config)
    config.design = text
    other = type(model)(config).eval()
    for new, old in zip(blocks(other), blocks(model), strict=True):
        for op in ("attn", "ffn", "norm"):
            sites = [[s.name for s in b.section.sites if s.op == op] for b in (new, old)]
            for left, right in zip(*sites, strict=True):
                setattr(new, left, getattr(old, right))
    theirs, mine = model.state_dict(), other.state_dict()
    outside = {n: t for n, t in theirs.items() if ".layers." not in n}
    assert {n for n in mine if ".layers." not in n} == set(outside)
    other.load_state_dict(outside, strict=False)
    return other


def flipped(section: Section) -> str:
    """The equation of a block with its branches in parallel instead of in series, or the other way round."""
    calls = [s for s in section.steps if isinstance(s, Call) and s.site.op in ("attn", "ffn")]
    attn, ffn = sorted(calls, key=lambda c: c.site.op)
    serial = attn.value in section.ancestors[ffn.args[0]]
    norms = [s.site.name for s in section.steps if isinstance(s, Call) and s.site.op == "norm"]
    inside, outside = ([n for n in norms if n.endswith(end)] for end in ("in_norm", "out_norm"))
    stream = [n for n in norms if n.startswith("stream_norm")]
    if "attn_ffn_in_norm" in norms:
        return ONE_NORM
    if stream and not inside:
        return "h = x; x = norm(x + attn(x)); x = norm(x + ffn(h))"
    a = "attn(norm(x))" if "attn_in_norm" in inside else "attn(x)"
    f = "ffn(norm(x))" if "ffn_in_norm" in inside else "ffn(x)"
    if outside:
        a, f = f"norm({a})", f"norm({f})"
    return f"x = x + {a} + {f}" if serial else f"x = x + {a}; x = x + {f}"


@pytest.mark.parametrize(
    ("name", "row", "change"),
    [
        ("gpt2", "h.{i}.attn.c_proj", ()),  # a matrix not turned
        ("gpt_neox", "layers.{i}.attention.query_key_value", "Fused()"),  # heads not taken apart
        ("gptj", "h.{i}.attn.q_proj", ()),  # pairs left side by side
        ("falcon-new", "h.{i}.self_attention.query_key_value", "Fused()"),
        ("cohere-qk-norm", "layers.{i}.self_attn.q_norm", ()),
        ("codegen", "h.{i}.attn.qkv_proj", "Fused(4)"),
    ],
)
def test_a_wrong_row_of_a_weight_map_is_seen(name: str, row: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from sublayer.hf.changes import Fused

    case, theirs, _ = pair(name)
    family = FAMILIES[case.model_type]
    changes = change if isinstance(change, tuple) else (eval(change, {"Fused": Fused}),)
    rows = tuple(replace(r, changes=changes) if r.source == row else r for r in family.rows)
    assert rows != family.rows
    monkeypatch.setitem(FAMILIES, case.model_type, replace(family, rows=rows))
    mutant = load(theirs, verify=False)
    assert relative_error(logits(mutant, tokens()), logits(theirs, tokens())) > VISIBLE


@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2"])
def test_a_row_too_few_or_too_many_is_refused(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    _, theirs, _ = pair(model_type)
    family = FAMILIES[model_type]
    monkeypatch.setitem(FAMILIES, model_type, replace(family, rows=family.rows[1:]))
    with pytest.raises(CheckpointError, match=r"without a place: .*weight \[61, 32\].*that nothing fills: "):
        load(theirs, verify=False)
    monkeypatch.setitem(FAMILIES, model_type, replace(family, rows=(*family.rows, family.rows[0])))
    with pytest.raises(CheckpointError, match=r"with two places: .*that are filled twice: "):
        load(theirs, verify=False)


def test_a_design_that_the_config_does_not_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from sublayer.hf.families.parts import wiring

    _, theirs, _ = pair("llama")
    family = FAMILIES["llama"]
    wrong = replace(family, wirings=(wiring("x = x + attn(norm(x)) + ffn(norm(x))"),))
    monkeypatch.setitem(FAMILIES, "llama", wrong)
    with pytest.raises(CheckpointError, match=r"but the auditor reads\nx = x \+ attn\(norm\(x\)\); x = x"):
        load(theirs)
    assert isinstance(load(theirs, verify=False).config.wiring, Design)
