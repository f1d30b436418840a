"""The kinds of a study's parts, for real and small: train over a grid, convert, fine-tune what came out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sublayer.study import Program, StudyError, run_program
from sublayer.study.parts.checkpoints import folder_of, named
from sublayer.study.parts.depth import against
from sublayer.study.parts.train import state
from sublayer.study.plan import Plan
from sublayer.study.stats import rank_correlation

STUDY = """
title: Small
question: Does all of it run?
parts:
  - kind: train
    name: depth
    designs: [post-norm, {{id: deep, design: deepnorm, init: deepnorm}}]
    grid: {{layers: [1, 2], warmup: [0, 0.5]}}
    seeds: [0]
    measure_every: 4
    lrs: [1e-2]
    &small
    objective: mlm
    data: {texts}
    vocab_size: 320
    hidden: 32
    heads: 2
    ffn: 64
    seq: 32
    batch: 4
    steps: 4
    eval_rows: 8
    measure_rows: 4
    threads: 1
  - kind: train
    name: pretrained
    designs: [post-norm, paf, {{id: no-ffn, design: "x = norm(x + attn(x))"}}]
    seeds: [0]
    lrs: [1e-2]
    layers: 2
    objective: mlm
    data: {texts}
    vocab_size: 320
    hidden: 32
    heads: 2
    ffn: 64
    seq: 32
    batch: 4
    steps: 4
    eval_rows: 8
    measure_every: 2
    measure_rows: 4
    threads: 1
  - kind: finetune
    name: tasks
    of: [pretrained]
    returns: [post-norm, paf, post-norm]
    data: {glue}
    tasks: [rte]
    seeds: [0, 1]
    steps: 2
    batch: 4
    max_length: 32
    eval_every: 0
    save_steps: 0
    save_model: false
""".replace("    &small\n", "")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    texts = folder / "texts"
    texts.mkdir()
    for i in range(30):
        words = [f"word{(i * 7 + j * j) % 50}" for j in range(60)]
        (texts / f"{i:02}.txt").write_text(" ".join(words) + ".\n")
    rte = folder / "glue" / "RTE"
    rte.mkdir(parents=True)
    rows = [f"{i}\tword{i} word1\tword{i % 3}\t{'entailment' if i % 2 else 'not_entailment'}" for i in range(12)]
    for name in ("train.tsv", "dev.tsv"):
        (rte / name).write_text("index\tsentence1\tsentence2\tlabel\n" + "\n".join(rows) + "\n")
    path = folder / "study.yaml"
    path.write_text(STUDY.format(texts=texts, glue=folder / "glue"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLAYER_CACHE", str(folder / "cache"))
        return folder / "out", run_program(Program.load(path), folder / "out", jobs=2, output=None)


def part(record: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(p for p in record["parts"] if p["name"] == name)
    return found


def test_a_grid_runs_every_cell_with_every_seed(ran: tuple[Path, dict[str, Any]]) -> None:
    _out, record = ran
    found = part(record, "depth")
    runs = found["details"]["runs"]
    assert len(runs) == 4 * 2
    assert {r["status"] for r in runs} == {"ok"}
    assert {(r["settings"]["layers"], r["settings"]["warmup"]) for r in runs} == {(1, 0), (1, 0.5), (2, 0), (2, 0.5)}
    losses, states, depth = (t for t in found["tables"] if t["title"] != "The two claims")
    assert len(losses["rows"]) == 8
    assert [row[0] for row in states["rows"]] == list(dict.fromkeys(r["cell"] for r in runs))
    assert depth["head"][2:4] == ["growth, forecast", "growth, measured"]
    assert all(isinstance(v, float) and v > 0 for row in depth["rows"] for v in row[2:4])
    assert [c["x"] for c in found["charts"]] == ["layers", "layers"]
    assert sum("With warmup" in v for v in found["verdicts"]) == 2


def test_the_forecast_is_older_than_every_run(ran: tuple[Path, dict[str, Any]]) -> None:
    out, _record = ran
    forecast = out / "parts" / "depth" / "forecast.json"
    runs = list((out / "parts" / "depth").glob("*/runs/*/spec.json"))
    assert len(runs) == 8
    assert forecast.stat().st_mtime <= min(p.stat().st_mtime for p in runs)


def test_settings_of_one_design_reach_its_runs_only(ran: tuple[Path, dict[str, Any]]) -> None:
    out, record = ran
    for spec in (out / "parts" / "depth").glob("*/runs/*/spec.json"):
        assert (json.loads(spec.read_text())["init"] == "deepnorm") is spec.parent.name.startswith("deep")
    assert any("settings of its own" in c for c in part(record, "depth")["caveats"])


def test_the_first_step_s_gradients_are_there(ran: tuple[Path, dict[str, Any]]) -> None:
    runs = part(ran[1], "depth")["details"]["runs"]
    assert all(r["gradient"] == 1.0 for r in runs if r["settings"]["layers"] == 1)
    assert all(r["gradient"] != 1.0 and r["gradient"] > 0 for r in runs if r["settings"]["layers"] == 2)


def test_claims_are_shown_over_training_and_by_layer(ran: tuple[Path, dict[str, Any]]) -> None:
    charts = part(ran[1], "pretrained")["charts"]
    over = next(c for c in charts if c["x"] == "step")
    assert [p["x"] for p in over["series"][0]["points"]] == [0, 2, 4]
    assert any(c["x"].startswith("layer") for c in charts)
    isotropy = next(t for t in part(ran[1], "pretrained")["tables"] if t["title"] == "Isotropy behind the last layer")
    assert [row[0] for row in isotropy["rows"]] == ["post-norm", "paf", "no-ffn"]
    assert all(0 < row[1] <= 1 and row[4] > 1 for row in isotropy["rows"])
    verdicts = part(ran[1], "pretrained")["verdicts"]
    assert sum("no-ffn" in v for v in verdicts if v.startswith("Does the FFN")) == 0, "it has no FFN to ask about"


def test_what_was_trained_is_fine_tuned_and_compared(ran: tuple[Path, dict[str, Any]]) -> None:
    found = part(ran[1], "tasks")
    assert [row[0] for row in found["tables"][0]["rows"]] == ["post-norm", "paf", "no-ffn", "majority"]
    runs = found["details"]["runs"]
    expected = {(c, s) for c in ("post-norm", "paf", "no-ffn") for s in (0, 1)}
    assert {(r["checkpoint_label"], r["seed"]) for r in runs} == expected
    assert all(r["status"] == "ok" and 0 <= r["score"] <= 1 for r in runs)
    assert len(found["verdicts"]) == 2 + 1
    assert (ran[0] / "parts" / "tasks" / "paf" / "finetune.json").exists()


def test_a_conversion_is_recovered_by_distillation(ran: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, record = ran
    source = out / "parts" / "pretrained" / part(record, "pretrained")["details"]["checkpoints"]["post-norm"]
    path = tmp_path / "study.yaml"
    recover = f"{{data: {tmp_path / 'texts'}, steps: 30, batch: 4, seq: 32, lr: 3e-3, held_out: 8}}"
    settings = f"kind: convert, name: c, label: m, to: [paf, post-norm], checkpoint: {source}, recover: {recover}"
    path.write_text(f"title: a\nquestion: b\nparts:\n  - {{{settings}}}\n")
    (tmp_path / "texts").mkdir()
    for i in range(60):
        words = [f"word{(i * 7 + j * j) % 50}" for j in range(60)]
        (tmp_path / "texts" / f"{i}.txt").write_text(" ".join(words) + ".\n")
    found = part(run_program(Program.load(path), tmp_path / "out", output=None), "c")
    made = found["details"]["conversions"]
    assert made["paf"]["at_once"] > made["paf"]["recovered"] > 0
    assert made["post-norm"]["at_once"] == 0
    assert set(found["details"]["checkpoints"]) == {
        "m",
        "m-paf",
        "m-paf-recovered",
        "m-post-norm",
        "m-post-norm-recovered",
    }
    assert all(
        (tmp_path / "out" / "parts" / "c" / f / "config.json").exists()
        for f in found["details"]["checkpoints"].values()
    )


def test_states_of_a_run() -> None:
    assert state({"status": "ok", "eval_loss": 2.0}, 2.2) == "learned"
    assert state({"status": "ok", "eval_loss": 2.15}, 2.2) == "stuck"
    assert state({"status": "diverged", "eval_loss": None}, 2.2) == "lost"
    assert state({"status": "failed", "eval_loss": None}, 2.2) == "missing"


def test_the_forecast_is_judged_by_rank_and_factor() -> None:
    (plan,) = [Plan.make(["post-norm"], steps=2)]
    made = {
        "made": "then",
        "designs": {"post-norm": {str(d): {"growth": 2.0 * d, "gradient": None} for d in (1, 2, 3)}},
    }
    rows = [{"design": "post-norm", "settings": {"layers": d}, "growth": 1.0 * d, "gradient": None} for d in (1, 2, 3)]
    table, verdicts = against(made, plan.designs, [1, 2, 3], rows)
    assert [row[2:4] for row in table["rows"]] == [[2.0, 1.0], [4.0, 2.0], [6.0, 3.0]]
    assert verdicts == [
        (
            "The depth forecast's growth is off by a factor of 2.00 (median of 3 designs and depths); its rank "
            "correlation with what the first step showed is 1.00."
        )
    ]


def test_rank_correlation_with_ties() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert rank_correlation([1, 1, 2], [3, 3, 9]) == pytest.approx(1.0)
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_folders_and_packages_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOMEWHERE", raising=False)
    with pytest.raises(StudyError, match="SOMEWHERE is not set"):
        folder_of("$SOMEWHERE/glue", tmp_path, "p")
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    with pytest.raises(StudyError, match="does not exist"):
        folder_of("$SOMEWHERE/glue", tmp_path, "p")
    assert folder_of("$SOMEWHERE", tmp_path, "p") == str(tmp_path)
    with pytest.raises(StudyError, match="not installed"):
        named("package:no_such_package/model", tmp_path)
    assert named("someone/some-model", tmp_path) == "someone/some-model"
