"""The rules of the two claims, on records written by hand."""

import json
from typing import Any

import pytest

from sublayer.study.claims import SMALL, answer_claims, relative_change

ISO = {"mean_cosine": 0.5, "iso_score": 0.5, "partition_ratio": 0.5, "rank_one_residual": 0.5, "effective_rank": 11.0}


def iso(change: float = 0.0, **others: float) -> dict[str, float]:
    """A cloud whose every measure is `change` less isotropic than ISO, except for those in `others`."""
    left = 1 - change
    less = {
        "mean_cosine": 1 - 0.5 * left,
        "iso_score": 0.5 * left,
        "partition_ratio": 0.5 * left,
        "rank_one_residual": 0.5 * left,
        "effective_rank": 1 + 10 * left,
    }
    return less | others


def add(layer: int, kind: str, ratio: float = 0.1, without: dict[str, Any] | None = None) -> dict[str, Any]:
    quartiles = {"q25": ratio, "median": ratio, "q75": ratio}
    term = {"term": kind, "kind": kind, "ratio": quartiles, "cosine": 0.0, "without": without or iso()}
    return {"layer": layer, "section": "block", "stream": "x", "before": ISO, "after": ISO, "terms": [term]}


def run(sums: list[dict[str, Any]] | None, seed: int = 0, status: str = "ok", design: str = "d", lr: float = 1e-3):
    record = None if sums is None else {"step": 1, "tokens": 9, "sums": sums, "layers": []}
    return {"design": design, "seed": seed, "lr": lr, "status": status, "measures": record}


def ffn(*runs: dict[str, Any], **options: Any) -> dict[str, Any]:
    return answer_claims(runs, ["d"], **options)[0]["answers"][0]


def attention(*runs: dict[str, Any]) -> dict[str, Any]:
    return answer_claims(runs, ["d"])[1]["answers"][0]


def ffn_run(*changes: float, seed: int = 0, **others: float) -> dict[str, Any]:
    return run([add(i, "ffn", without=iso(c, **others)) for i, c in enumerate(changes)], seed)


def attention_run(*ratios: float, seed: int = 0) -> dict[str, Any]:
    return run([add(i, "attn", ratio=r) for i, r in enumerate(ratios)], seed)


def test_relative_change() -> None:
    assert relative_change(0.5, 0.25) == 0.5
    assert relative_change(0.25, 0.5) == -0.5
    assert relative_change(0.5, 0.0) == 1.0
    assert relative_change(0.0, 0.0) == 0.0


def test_shape_of_the_claims() -> None:
    got = answer_claims([ffn_run(0.5)], ["d", "never run"])
    assert [c["claim"] for c in got] == ["ffn-isotropy", "attention-small"]
    for claim in got:
        assert [a["design"] for a in claim["answers"]] == ["d", "never run"]
        assert claim["question"].endswith("?")
        assert len(claim["rule"]) > 200
    json.dumps(got, allow_nan=False)


def test_ffn_holds() -> None:
    got = ffn(ffn_run(0.4, 0.5, 0.6), ffn_run(0.4, 0.52, 0.6, seed=1), ffn_run(0.4, 0.51, 0.6, seed=2))
    assert got["answer"] == "holds"
    assert got["value"] == pytest.approx(0.51)
    assert got["low"] < 0.51 < got["high"]
    assert got["layers"][2] == {"layer": 2, "value": pytest.approx(0.6)}
    assert got["measures"]["effective_rank"] == pytest.approx(0.51)
    assert "+40.0% to +60.0%" in got["detail"]
    assert "layer 0 (counted from 0)" in got["detail"]
    assert "IsoScore +51.0%" in got["detail"]


def test_ffn_does_not_when_it_changes_nothing_or_harms() -> None:
    assert ffn(ffn_run(0.0, 0.001, -0.3))["answer"] == "does not"
    assert ffn(ffn_run(-0.2, -0.3, 0.5))["answer"] == "does not"


def test_ffn_unclear_when_layers_disagree() -> None:
    got = ffn(ffn_run(0.5, 0.5, -0.5, -0.4))
    assert got["answer"] == "unclear"
    assert "layers disagree" in got["detail"]


def test_ffn_unclear_when_measures_disagree() -> None:
    """The residual and the cosine see a common mean, IsoScore and effective rank do not follow."""
    got = ffn(ffn_run(0.5, 0.5, 0.5, iso_score=0.9, effective_rank=40.0))
    assert got["answer"] == "unclear"
    assert "measures disagree" in got["detail"]
    assert got["measures"]["iso_score"] == pytest.approx(-0.4 / 0.9)
    assert ffn(ffn_run(0.5, 0.5, 0.5, iso_score=0.9))["answer"] == "holds"  # one witness against is outvoted
    faint = ffn(ffn_run(0.5, 0.5, 0.5, iso_score=0.499, effective_rank=10.9))  # two that hardly move are not enough
    assert faint["answer"] == "unclear"
    assert "measures disagree" in faint["detail"]


def test_ffn_unclear_when_seeds_disagree() -> None:
    got = ffn(ffn_run(0.5, 0.5), ffn_run(-0.5, -0.5, seed=1))
    assert got["answer"] == "unclear"
    assert "runs disagree (1 no, 1 yes)" in got["detail"]


def test_ffn_unclear_when_the_interval_contains_the_threshold() -> None:
    got = ffn(*(ffn_run(c, c, seed=s) for s, c in enumerate((0.021, 0.03, 0.4))))
    assert got["low"] < 0.02 < got["high"]
    assert got["answer"] == "unclear"
    assert "interval" in got["detail"]


def test_attention_answers() -> None:
    assert attention(attention_run(0.1, 0.2, 0.3))["answer"] == "holds"
    assert attention(attention_run(0.1, 0.2, 0.3, 0.9))["answer"] == "holds"
    worst = attention(attention_run(0.1, 0.2, 0.3, 1.1))
    assert worst["answer"] == "unclear"  # most layers are small, and one is larger than its stream
    assert "worst is layer 3 (counted from 0) with 1.10" in worst["detail"]
    assert attention(attention_run(0.5, 0.8, 0.2))["answer"] == "does not"
    assert "layers disagree" in attention(attention_run(0.5, 0.2))["detail"]
    assert attention(attention_run(SMALL))["answer"] == "holds"


def test_attention_value_and_interval() -> None:
    got = attention(attention_run(0.1, 0.2, 0.3), attention_run(0.1, 0.22, 0.3, seed=1))
    assert got["value"] == pytest.approx(0.21)
    assert got["low"] == pytest.approx(0.21 - 12.7062 * 0.01, abs=1e-5)
    assert got["answer"] == "holds"  # two runs agree; their interval is shown, and too wide to decide
    one = attention(attention_run(0.1))
    assert one["low"] is one["high"] is None
    assert "One run: no interval" in one["detail"]


def test_a_design_without_the_term_is_unclear_with_the_reason() -> None:
    got = ffn(attention_run(0.1))
    assert (got["answer"], got["value"]) == ("unclear", None)
    assert "No + of its equation adds a term of the FFN alone" in got["detail"]
    assert "attention alone" in attention(ffn_run(0.5))["detail"]
    # a term that attention and the FFN make together is neither's
    assert "alone" in ffn(run([add(0, "attn+ffn")]))["detail"]


def test_lost_and_unmeasured_runs_are_named() -> None:
    got = ffn(ffn_run(0.5, 0.5), run(None, seed=1, status="diverged"), run(None, seed=2, status="killed"))
    assert got["answer"] == "holds"
    assert "Lost and not in these numbers: seeds 1, 2." in got["detail"]
    got = ffn(run(None, seed=3, status="failed"))
    assert got["answer"] == "unclear"
    assert got["detail"] == "No run of it was measured. Lost and not in these numbers: seed 3."
    assert ffn(run(None))["detail"] == "No run of it was measured."


def test_undefined_numbers_are_left_out_and_said() -> None:
    undefined = dict.fromkeys(ISO)
    got = ffn(run([add(0, "ffn", without=undefined)]))
    assert got["answer"] == "unclear"
    assert "not defined" in got["detail"]
    part = run([add(0, "ffn", without=undefined), add(1, "ffn", without=iso(0.5))])
    assert [layer["layer"] for layer in ffn(part)["layers"]] == [1]


def test_one_learning_rate_stands_for_a_design() -> None:
    slow, fast = ffn_run(0.5, 0.5), ffn_run(-0.5, -0.5)
    fast["lr"] = 1e-2
    assert ffn(slow, fast)["answer"] == "unclear"
    assert ffn(slow, fast, lrs={"d": 1e-3})["answer"] == "holds"
    assert ffn(slow, fast, lrs={"d": 1e-2})["answer"] == "does not"


def test_only_layers_count() -> None:
    """A sum of the embed or final section is no layer's."""
    final = add(4, "ffn", without=iso(-0.9)) | {"section": "final"}
    assert ffn(run([add(0, "ffn", without=iso(0.5)), final]))["value"] == pytest.approx(0.5)


def test_the_stream_x_decides_where_there_are_several() -> None:
    on_r = add(0, "ffn", without=iso(-0.9)) | {"stream": "r"}
    assert ffn(run([add(0, "ffn", without=iso(0.5)), on_r]))["value"] == pytest.approx(0.5)
    assert ffn(run([on_r]))["value"] == pytest.approx(-0.9 / 1.9)
