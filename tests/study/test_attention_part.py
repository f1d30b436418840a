"""The kind `attention`: its fits recover what was put in, its verdict follows its rules, and measurements resume."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sublayer.study.parts import Result, Setting, attention, make
from sublayer.study.parts.attention_findings import Formula, Measured, Shape, find
from sublayer.study.parts.attention_fit import crossing, crossing_interval, fit, fit_rounds, interval, medians
from sublayer.study.parts.attention_show import show

LENGTHS = [64, 128, 256, 512, 1024]
SHAPE = Shape(hidden=64, heads=2, ffn=256, act="gelu", width=4)
TINY = {"lengths": [8, 16, 32], "hidden": 16, "heads": 2, "repeats": 1, "seconds": 0.001, "threads": 1}


def part(**settings: Any) -> attention.AttentionCost:
    made = make({"kind": "attention", **TINY, **settings}, 1, Path(), [])
    assert isinstance(made, attention.AttentionCost)
    return made


def at(folder: Path) -> Setting:
    return Setting(folder, None, io.StringIO(), {}, {})


def curve(c: float, a: float, b: float, lengths: list[int] = LENGTHS) -> dict[int, float]:
    return {length: c + a * length + b * length**2 for length in lengths}


# --- fits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [(1e-3, 2e-6, 3e-9), (0.0, 2e-6, 3e-9), (1e-3, 0.0, 3e-9), (1e-3, 2e-6, 0.0)])
def test_a_fit_finds_the_coefficients_again(expected: tuple[float, float, float]) -> None:
    found = fit(curve(*expected))
    assert (found.c, found.a, found.b) == pytest.approx(expected, rel=1e-6, abs=1e-15)
    assert found.r2 == pytest.approx(1)
    assert found.worst < 1e-6


def test_a_fit_has_no_negative_term_and_is_the_best_without_one() -> None:
    from scipy.optimize import nnls

    for values in (curve(5.0, -0.001, 2e-6), {64: 3.0, 128: 2.0, 256: 2.5, 512: 9.0}, curve(-0.1, 0.02, 0.0)):
        found = fit(values)
        assert min(found.c, found.a, found.b) >= 0
        rows = [[1 / y, n / y, n**2 / y] for n, y in values.items()]
        _, best = nnls(rows, [1.0] * len(rows))
        ours = sum((found(n) / y - 1) ** 2 for n, y in values.items()) ** 0.5
        assert ours == pytest.approx(best, abs=1e-6)


def test_the_interval_of_b_holds_it_and_grows_with_the_noise() -> None:
    def noisy(size: float) -> Any:
        return [curve(1e-3, 2e-6, 3e-9 * (1 + size * step)) for step in (-2, -1, 0, 1, 2)]

    tight, wide = (fit_rounds(noisy(size), 0) for size in (0.01, 0.1))
    for found in (tight, wide):
        assert found.b_low is not None
        assert found.b_high is not None
        assert found.b_low <= 3e-9 <= found.b_high
    assert wide.b_high - wide.b_low > 5 * (tight.b_high - tight.b_low)  # type: ignore[operator]
    assert fit_rounds(noisy(0.1)[:1], 0).b_low is None
    assert fit_rounds(noisy(0.1), 0) == fit_rounds(noisy(0.1), 0)


def test_where_curves_cross() -> None:
    straight = curve(0, 1.0, 0)
    assert crossing(curve(0, 0, 1 / 300), straight) == pytest.approx(300, rel=0.02)  # between 256 and 512
    assert crossing(curve(0, 2, 0), straight) == 0
    assert crossing(curve(0, 0.5, 0), straight) == float("inf")
    assert crossing({64: 1.0}, straight) is None
    rounds = [curve(0, 0, 1 / place) for place in (280, 300, 320)]
    low, high = crossing_interval(rounds, [straight] * 3, 0)
    assert low is not None
    assert high is not None
    assert 270 < low < 300 < high < 330
    assert crossing_interval([curve(0, 0.5, 0)] * 3, [straight] * 3, 0) == (None, None)


def test_medians_and_intervals_take_what_is_there() -> None:
    assert medians([{8: 1.0, 16: 5.0}, {8: 3.0}, {8: 2.0}]) == {8: 2.0, 16: 5.0}
    assert interval([]) == (None, None)
    assert interval(list(range(1001))) == (25, 975)


def test_the_formula_is_that_of_the_products() -> None:
    found = Shape(hidden=64, heads=2, ffn=192, act="gelu", width=4).formula()
    assert found == Formula(8 * 64**2, 4 * 64, 4 * 64 * 192, 192)
    assert (found.whole, found.products) == (192 - 2 * 64, 192)
    gated = Shape(hidden=64, heads=2, ffn=192, act="swiglu", width=4).formula()
    assert (gated.ffn, gated.products) == (6 * 64 * 192, 288)


@pytest.mark.parametrize("layers", [1, 2])
def test_score_matrices_by_the_cost_model(layers: int) -> None:
    shape = Shape(hidden=64, heads=2, ffn=256, act="gelu", width=4, layers=layers)
    # Kept for the backward pass: probabilities, one a site. At the peak beside them: their gradient and the scores'.
    assert shape.matrices("eager") == pytest.approx(layers + 2)
    assert shape.matrices("sdpa") == pytest.approx(0)
    assert Shape(64, 2, 256, "gelu", 2).matrices("eager") is None


# --- what is said -------------------------------------------------------------------------------------------------


def made_up(subject: str, times: dict[int, float], peaks: dict[int, float], lost: Any = None) -> Measured:
    rounds = [{n: t * (1 + step / 100) for n, t in times.items()} for step in (0, -1, 1)]
    return Measured(subject, "forward", rounds if times else [{}, {}, {}], peaks, lost or {})


def made_up_result() -> Result:
    """Square: quadratic in time and memory, crossing at 150; flat: linear in both, never as dear; gone: not here."""
    scores = 2 * 4  # bytes of one T x T matrix for each of two heads
    subjects = [
        made_up("ffn", curve(0, 1e-6, 0), curve(1e5, 2048, 0)),
        made_up("square", curve(0, 0, 1e-6 / 150), curve(1e5, 256, 3 * scores)),
        made_up("flat", curve(1e-6, 0.5e-6, 0), curve(1e5, 1024, 0)),
        made_up("gone", {}, {}, dict.fromkeys(LENGTHS, "no kernel")),
    ]
    return show(SHAPE, subjects, LENGTHS, 0, causal=False)


def test_the_verdict_follows_its_rules() -> None:
    result = made_up_result()
    growth, crossover, memory = result.verdicts
    assert growth == (
        "Forward: the time of attention grows with the square of the length in square; that is not shown for flat."
    )
    place = crossing(curve(0, 0, 1e-6 / 150), curve(0, 1e-6, 0))  # by a straight line between logarithms
    assert crossover == (
        f"Forward: a call site costs as much as the FFN from {place:.0f} tokens in square, not up to 1,024 in flat; "
        "FLOPs say from 128: square agrees."
    )
    # 4 d FLOPs a pair over 1e-6 / 150 s; 4 d d_ff a token over 1e-6 s
    assert (
        "run at 38.4 in square, and those of the FFN at 65.5; square holds whole score matrices"
        in (result.charts[1]["note"])
    )
    assert memory == (
        "Forward: peak memory grows with the square of the length in square (3 score matrices), in proportion to it "
        "in flat."
    )


def test_memory_of_a_training_step_stands_beside_the_cost_model() -> None:
    peaks = curve(1e5, 256, 3 * 2 * 4)
    times = [curve(0, 0, 1e-8)]
    subjects = [
        Measured("ffn", "forward+backward", [curve(0, 1e-6, 0)], {}, {}),
        Measured("eager", "forward+backward", times, peaks, {}, "eager"),
    ]
    result = show(SHAPE, subjects, LENGTHS, 0, causal=False)
    assert "eager (3 score matrices, 3 by sublayer cost)" in result.verdicts[-1]
    assert result.tables[1]["rows"][0][-2:] == [3.0, 3.0]


def test_a_crossover_far_from_the_formula_does_not_agree() -> None:
    slow = [made_up("ffn", curve(0, 1e-6, 0), {}), made_up("slow", curve(0, 0, 1e-8), {})]
    fast = [made_up("ffn", curve(0, 1e-6, 0), {}), made_up("fast", curve(0, 0, 1e-6 / 600), {})]
    assert "FLOPs say from 128: slow comes sooner." in " ".join(show(SHAPE, slow, LENGTHS, 0, False).verdicts)
    assert "FLOPs say from 128: fast comes later." in " ".join(show(SHAPE, fast, LENGTHS, 0, False).verdicts)


def test_a_square_term_inside_the_noise_is_not_shown() -> None:
    rounds = [curve(1e-4, 1e-6, b) for b in (0.0, 0.0, 4e-10)]
    ffn = made_up("ffn", curve(0, 1e-6, 0), {})
    noisy = find(Measured("noisy", "forward", rounds, {}, {}), ffn, SHAPE, 0)
    assert not noisy.grows
    assert find(made_up("square", curve(1e-4, 1e-6, 4e-10), {}), ffn, SHAPE, 0).grows


def test_nothing_is_dropped_silently() -> None:
    result = made_up_result()
    lost = next(table for table in result.tables if table["title"] == "Lost")
    assert lost["rows"] == [["gone", "forward", "64, 128, 256, 512, 1,024", "no kernel"]]
    assert all("Not measured: gone" in chart["note"] for chart in result.charts)
    assert all(row[0] != "gone" or row[2] is None for table in result.tables[2:4] for row in table["rows"])
    assert [chart["title"] for chart in result.charts] == [
        "Time, forward", "Attention beside the FFN, forward", "Peak memory, forward"
    ]  # fmt: skip


def test_all_lost_is_said() -> None:
    subjects = [made_up("ffn", curve(0, 1e-6, 0), {}), made_up("gone", {}, {}, {64: "no kernel"})]
    assert show(SHAPE, subjects, LENGTHS, 0, False).verdicts == [
        "No backend could be measured; the table of what was lost says why."
    ]


def test_the_blocks_follow_the_schema(root: Path) -> None:
    rules = json.loads((root / "src/sublayer/study/record.schema.json").read_text(encoding="utf-8"))
    result = made_up_result()
    block = {"name": "a", "kind": "attention", "folder": "parts/a", **vars(result)}
    json.dumps(block, allow_nan=False)
    jsonschema.validate(block, {**rules["$defs"]["part"], "$defs": rules["$defs"]})


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lengths": [8, 16]}, "at least 3 ascending"),
        ({"lengths": [8, 32, 16]}, "at least 3 ascending"),
        ({"lengths": "8"}, "lengths"),
        ({"backend": ["eager"]}, "nearest: backends"),
        ({"backends": ["flash"]}, "'flash'"),
        ({"heads": 3}, "must divide hidden (16)"),
        ({"rows": 2, "tokens": 64}, "not both"),
        ({"passes": ["backward"]}, "'backward'"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"layers": 3}, "1 or 2"),
        ({"repeats": 0}, "at least 1"),
        ({"seconds": 0}, "above 0"),
        ({"clock": "sun"}, "wall, cpu"),
        ({"seeds": [True]}, "list of int"),
        ({"causal": 1}, "causal"),
        ({"act": "nothing"}, "nothing"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_runs(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        part(**change)
    assert said in str(caught.value)
    assert type(caught.value).__module__.startswith("sublayer.")


# --- measuring ----------------------------------------------------------------------------------------------------


def fake(calls: list[Any], code: int = 0, until: int | None = None) -> Any:
    """Stands for the measuring process: writes rows as it does, or the first of them and dies."""

    def run(task: Any, out: Path, threads: int) -> tuple[int, str]:
        calls.append(task)
        gone = {(name, length) for name, length, _ in task["lost"]}
        wanted = [(n, length) for n in task["passes"] for length in task["lengths"] if (n, length) not in gone]
        rows: list[Any] = [
            {"pass": n, "length": length, "peak": 1000 + length} for n, length in wanted if task["memory"]
        ]
        rows += [{"pass": n, "length": length, "seconds": 1e-6 * length, "rows": 1} for n, length in wanted[:until]]
        out.write_text(json.dumps({"done": until is None, "rows": rows}), encoding="utf-8")
        return code, "" if code <= 0 else "Traceback ...\nValueError: no such thing"

    return run


def test_finished_measurements_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(attention, "_run", fake(calls))
    first = part(backends=["eager", "flex"], repeats=2).run(at(tmp_path))
    assert [call["subject"] for call in calls] == ["ffn", "eager", "flex", "eager", "flex", "ffn"]  # in turn
    assert [call["memory"] for call in calls] == [True] * 3 + [False] * 3
    calls.clear()
    assert part(backends=["eager", "flex"], repeats=2).run(at(tmp_path)) == first
    assert calls == []
    (tmp_path / "measured" / "flex-1.json").write_text("cut off {", encoding="utf-8")
    part(backends=["eager", "flex"], repeats=3).run(at(tmp_path))
    assert [call["subject"] for call in calls] == ["flex", "flex", "ffn", "eager"]  # the damaged one, and a round more
    calls.clear()
    part(backends=["eager", "flex"], repeats=1, hidden=32).run(at(tmp_path))
    assert len(calls) == 3  # other sizes: nothing of the old is used


def test_times_of_another_machine_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(attention, "_run", fake(calls))
    part(backends=["eager"]).run(at(tmp_path))
    monkeypatch.setattr(attention, "_where", lambda: {"cpu": "another"})
    part(backends=["eager"]).run(at(tmp_path))
    assert len(calls) == 4


@pytest.mark.parametrize(("code", "why"), [(-9, "killed by SIGKILL"), (1, "ValueError: no such thing")])
def test_a_dead_process_loses_only_what_it_had_not_measured(
    code: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(attention, "_run", fake(calls, code, until=2))
    result = part(backends=["eager"], passes=["forward"], repeats=2).run(at(tmp_path))
    lost = next(table for table in result.tables if table["title"] == "Lost")
    assert [row[:3] for row in lost["rows"]] == [["ffn", "forward", "32"], ["eager", "forward", "32"]]
    assert all(why in row[3] for row in lost["rows"])
    assert [point["y"] is None for point in result.charts[0]["series"][0]["points"]] == [False, False, True]
    assert [call["lost"] for call in calls[2:]] == [[["forward", 32, row[3]]] for row in lost["rows"][::-1]]


def test_what_never_runs_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(attention, "_run", fake(calls, 1, until=0))
    part(backends=["eager"], repeats=3).run(at(tmp_path))
    assert [call["subject"] for call in calls] == ["ffn", "eager"]


WORKER = """
import sys, torch
from sublayer.study.parts import attention_worker as worker
block = lambda: torch.ones(64 * 2**18)  # 64 MiB
print(worker.peak_of(block) / 2**20, worker.peak_of(lambda: torch.ones(8 * 2**18)) / 2**20)
task = worker.Task.read(sys.argv[1])
worker.available = lambda: 0
print([row.get("reason", "") for row in worker.measure(task) if row["length"] > 8 and "peak" not in row][0])
"""


@pytest.mark.slow
def test_peaks_are_of_the_call_and_memory_is_left_alone(tmp_path: Path) -> None:
    task = part()._task("eager", 0, [])
    done = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(task)], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    peaks, refused = done.stdout.splitlines()
    large, small = map(float, peaks.split())
    assert large == pytest.approx(64, abs=2)
    assert small == pytest.approx(8, abs=2)  # less than the one before: the peak was reset
    assert "would need about" in refused


@pytest.mark.slow
def test_measures_for_real_and_says_what_is_not_here(tmp_path: Path) -> None:
    setting = at(tmp_path)
    result = part(backends=["eager", "sdpa-efficient"]).run(setting)
    assert isinstance(setting.output, io.StringIO)
    assert "round 1 of 1, eager" in setting.output.getvalue()
    times = next(table for table in result.tables if table["title"].startswith("Milliseconds"))
    rows = {(row[0], row[1]): row[2:-1] for row in times["rows"]}
    assert all(value > 0 for value in (*rows["eager", "forward"], *rows["ffn", "forward+backward"]))
    assert rows["sdpa-efficient", "forward"] == [None, None, None]  # sdpa has no such kernel on a CPU
    lost = next(table for table in result.tables if table["title"] == "Lost")
    assert {row[0] for row in lost["rows"]} == {"sdpa-efficient"}
    assert result.facts["seeds"] == [0]
    assert not list((tmp_path / "measured").glob("*.part.*"))
    json.dumps(vars(result), allow_nan=False)
