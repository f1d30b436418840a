"""The official metrics against their formulas, and what happens where they are not defined."""

import builtins
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sublayer.finetune import TASKS, FinetuneError, read, rescore, task_of
from sublayer.finetune.metrics import majority, require, score

DRAW = np.random.default_rng(0)
TRUTH, SAID = DRAW.integers(2, size=60), DRAW.integers(2, size=60)
NUMBERS, GUESSES = DRAW.random(60) * 5, DRAW.random(60) * 5


def one(key: str, said: Any, truth: Any) -> Any:
    return score(task_of(key), {"dev": np.asarray(said)}, {"dev": np.asarray(truth)})


def test_matthews_is_the_correlation_of_the_classes() -> None:
    found = one("cola", SAID, TRUTH)
    assert found.values["matthews"] == pytest.approx(np.corrcoef(SAID, TRUTH)[0, 1])
    assert found.score == found.values["matthews"]
    assert not found.notes


def test_f1_and_accuracy() -> None:
    hits = int(((SAID == 1) & (TRUTH == 1)).sum())
    f1 = 2 * hits / (SAID.sum() + TRUTH.sum())
    for key in ("mrpc", "qqp"):
        found = one(key, SAID, TRUTH)
        assert found.values == {"f1": pytest.approx(f1), "accuracy": pytest.approx((SAID == TRUTH).mean())}
        assert found.score == pytest.approx((f1 + (SAID == TRUTH).mean()) / 2)


def test_pearson_and_spearman() -> None:
    found = one("stsb", GUESSES, NUMBERS)
    ranks = [values.argsort().argsort() for values in (GUESSES, NUMBERS)]
    assert found.values["pearson"] == pytest.approx(np.corrcoef(GUESSES, NUMBERS)[0, 1])
    assert found.values["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    shifted = one("stsb", 3 * GUESSES**3, NUMBERS)
    assert shifted.values["spearman"] == pytest.approx(found.values["spearman"])
    assert shifted.values["pearson"] != pytest.approx(found.values["pearson"])


def test_matched_and_mismatched_are_kept_apart() -> None:
    task = task_of("mnli")
    right = np.array([0, 1, 2, 0])
    found = score(task, {"matched": right, "mismatched": right}, {"matched": right, "mismatched": np.zeros(4, int)})
    assert found.values == {"accuracy_matched": 1.0, "accuracy_mismatched": 0.5}
    assert found.score == 0.75
    assert tuple(found.values) == task.score_names


def test_constant_answers_are_shown_with_their_reason() -> None:
    same = one("cola", np.ones(60, int), TRUTH)
    assert same.values["matthews"] == 0.0
    assert same.notes == {"matthews": "every prediction is 1: no correlation, 0 by definition"}
    none = one("mrpc", np.zeros(60, int), TRUTH)
    assert none.values["f1"] == 0.0
    assert "no row is predicted to be of class 1" in none.notes["f1"]
    flat = one("stsb", np.full(60, 2.5), NUMBERS)
    assert flat.values == {"pearson": None, "spearman": None}
    assert flat.score is None
    assert flat.notes["pearson"] == "every prediction is 2.5: a correlation is not defined"
    alone = one("stsb", [1.0], [2.0])
    assert alone.score is None


@pytest.mark.parametrize("key", list(TASKS))
def test_the_majority_baseline_is_scored_by_the_task_s_own_metric(glue: Path, key: str) -> None:
    data = read(task_of(key), str(glue))
    found = majority(data.task, data.train, data.dev)
    assert set(found["metrics"]) == set(data.task.score_names)
    if key == "stsb":
        assert found["label"] == pytest.approx(np.mean(data.train.labels))
        assert found["score"] is None
        assert "not defined" in found["notes"]["spearman"]
        return
    answer = max(set(data.train.labels), key=data.train.labels.count)
    assert found["label"] == data.task.labels[answer]
    for name, split in data.dev.items():
        if "accuracy" in data.task.metrics:
            share = np.mean([label == answer for label in split.labels])
            metric = "accuracy" if len(data.dev) == 1 else f"accuracy_{name}"
            assert found["metrics"][metric] == pytest.approx(share)
    if key == "cola":
        assert found["score"] == 0.0
        assert "0 by definition" in found["notes"]["matthews"]


def test_scoring_again_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.tsv"
    lines = [f"{i}\t{said}\t{truth}" for i, (said, truth) in enumerate(zip(SAID, TRUTH, strict=True))]
    path.write_text("index\tprediction\tlabel\n" + "\n".join(lines) + "\n")
    assert rescore(task_of("cola"), path).values == one("cola", SAID, TRUTH).values
    with pytest.raises(FinetuneError, match="row that is not of RTE"):
        rescore(task_of("rte"), path)
    with pytest.raises(FinetuneError, match="give a file for each, matched, mismatched"):
        rescore(task_of("mnli"), path)
    path.write_text("a\tb\n")
    with pytest.raises(FinetuneError, match="must begin with the columns index, prediction and label"):
        rescore(task_of("cola"), path)


def test_a_missing_package_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        return real(name, *arguments, **options)

    found = importlib.import_module
    monkeypatch.setattr(
        "sublayer.finetune.metrics.import_module", lambda name: without(name) if "sklearn" in name else found(name)
    )
    assert "sklearn" in sys.modules
    with pytest.raises(FinetuneError, match=r"sklearn is not installed; pip install 'sublayer\[glue\]'"):
        require()


def test_every_metric_is_finite_or_none() -> None:
    for key in ("cola", "mrpc", "stsb", "rte"):
        for said, truth in ((SAID, TRUTH), (SAID, SAID), (1 - SAID, SAID)):
            for value in one(key, said, truth).values.values():
                assert value is None or math.isfinite(value)
