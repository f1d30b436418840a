"""t intervals against tables, and what happens to runs that are lost."""

import json
import math
import statistics
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublayer.study import stats

# two-sided 95 % and 99 % points of Student's t, as printed in any table
TABLE = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    4: (2.776, 4.604),
    9: (2.262, 3.250),
    30: (2.042, 2.750),
}


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_are_the_table_s(degrees: int) -> None:
    p95, p99 = TABLE[degrees]
    assert stats.t_quantile(0.975, degrees) == pytest.approx(p95, abs=6e-4)
    assert stats.t_quantile(0.995, degrees) == pytest.approx(p99, abs=6e-4)


def test_quantiles_equal_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is the second opinion here")
    for degrees in (1, 2, 3, 4, 5, 7, 10, 25, 200):
        for p in (0.5, 0.6, 0.9, 0.975, 0.9995, 0.02):
            assert stats.t_quantile(p, degrees) == pytest.approx(scipy_stats.t.ppf(p, degrees), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("p", "degrees"), [(0.0, 3), (1.0, 3), (math.nan, 3), (0.9, 0)])
def test_quantiles_refuse(p: float, degrees: int) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1|degree of freedom"):
        stats.t_quantile(p, degrees)


def test_summary_by_hand() -> None:
    got = stats.summary([1.0, 2.0, 4.0])
    assert got.mean == pytest.approx(7 / 3)
    assert got.sd == pytest.approx(statistics.stdev([1, 2, 4]))
    assert got.high - got.mean == pytest.approx(4.302653 * got.sd / math.sqrt(3), rel=1e-6)
    assert stats.summary([]) == stats.Summary(0, None, None, None, None)
    assert stats.summary([3.0]) == stats.Summary(1, 3.0, None, None, None)
    with pytest.raises(ValueError, match="finite"):
        stats.summary([1.0, math.nan])
    with pytest.raises(ValueError, match="confidence"):
        stats.summary([1.0, 2.0], confidence=95)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(-50, 50))
def test_a_shift_common_to_a_seed_cancels(values: list[float], shift: float) -> None:
    """What a seed does to both designs is not in the difference: that is what pairing is for."""
    base = dict(enumerate(values))
    got = stats.paired(base, {s: v + shift for s, v in base.items()})
    assert got.difference == pytest.approx(shift, abs=1e-9)
    assert got.low == pytest.approx(shift, abs=1e-9)
    assert got.high == pytest.approx(shift, abs=1e-9)


def test_paired_and_its_sign() -> None:
    got = stats.paired({0: 5.0, 1: 5.2, 2: 5.1}, {0: 4.9, 1: 5.0, 2: 5.02})
    assert got.difference == pytest.approx(-0.38 / 3)
    assert got.seeds == (0, 1, 2)
    assert got.note is None
    assert got.low < got.difference < got.high
    assert not got.clear  # three seeds of this spread do not settle it
    assert stats.paired({0: 5.0, 1: 5.2}, {0: 4.0, 1: 4.2}).clear


def test_one_seed_has_no_interval() -> None:
    got = stats.paired({0: 5.0}, {0: 4.5})
    assert (got.difference, got.low, got.high) == (-0.5, None, None)
    assert got.note == stats.ONE_SEED
    assert not got.clear


@pytest.mark.parametrize("gone", [None, math.nan, math.inf])
def test_a_lost_seed_is_named_and_never_paired(gone: float | None) -> None:
    base = {0: 5.0, 1: 5.2, 2: 5.1}
    got = stats.paired(base, {0: 4.9, 1: gone, 2: 5.0})
    assert got.seeds == (0, 2)
    assert got.lost == (1,)
    assert got.difference == pytest.approx(-0.1)
    assert "Lost seed 1" in got.note
    assert "flatters" in got.note
    flipped = stats.paired({0: 4.9, 1: gone, 2: 5.0}, base)
    assert flipped.lost == ()
    assert flipped.lost_baseline == (1,)
    assert "baseline lost seed 1" in flipped.note


def test_a_design_that_lost_everything_keeps_its_row() -> None:
    got = stats.comparison({"a": {0: 5.0, 1: 5.1}, "b": {0: None, 1: math.nan}})
    row = got["rows"][1]
    assert row["design"] == "b"
    assert (row["n"], row["lost"]) == (0, 2)
    assert row["mean"] is row["difference"] is row["low"] is None
    assert "Lost seeds 0, 1" in row["note"]
    assert stats.NO_SEED in row["note"]
    json.dumps(got, allow_nan=False)


def test_comparison_rows() -> None:
    got = stats.comparison({"a": {0: 5.0, 1: 5.2}, "b": {0: 4.8, 1: 5.1, 7: 4.0}, "c": {0: 5.5}}, baseline="b")
    assert got["baseline"] == "b"
    a, b, c = got["rows"]
    assert [row["design"] for row in got["rows"]] == ["a", "b", "c"]
    assert a["difference"] == pytest.approx(0.15)
    assert a["seeds"] == [0, 1]
    assert "Run in one of the two only: seed 7" in a["note"]
    assert b["difference"] is None
    assert b["n"] == 3
    assert b["note"] is None
    assert c["sd"] is c["low"] is None
    assert c["difference"] == pytest.approx(0.7)
    assert "95%" in got["method"]
    with pytest.raises(ValueError, match="baseline is one of a: got 'z'"):
        stats.comparison({"a": {0: 1.0}}, baseline="z")
    with pytest.raises(ValueError, match="nothing to compare"):
        stats.comparison({})
    lost = stats.comparison({"a": {0: None, 1: 5.0}})["rows"][0]
    assert lost["note"] == "Lost seed 0."


def test_losses_from_runs() -> None:
    runs = [
        {"design": "a", "seed": 0, "lr": 1e-3, "status": "ok", "eval_loss": 5.0},
        {"design": "a", "seed": 1, "lr": 1e-3, "status": "diverged", "eval_loss": None},
        {"design": "a", "seed": 0, "lr": 1e-2, "status": "ok", "eval_loss": 6.0},
        {"design": "b", "seed": 0, "lr": 1e-3, "status": "ok", "eval_loss": 4.0},
    ]
    assert stats.losses_by_seed(runs, "a", 1e-3) == {0: 5.0, 1: None}
    assert stats.losses_by_seed(runs, "b") == {0: 4.0}
    assert stats.losses_by_seed(runs, "c") == {}
    with pytest.raises(ValueError, match="more than once"):
        stats.losses_by_seed(runs, "a")


def test_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, sublayer.study.stats, sublayer.study.claims; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
