import dataclasses
import subprocess
import sys

import pytest

from sublayer.train import SIZES, TrainError, TrainSpec


def test_json_both_ways(spec):
    one = spec(tokens=5000, steps=None, betas=[0.9, 0.95], report_to=["tensorboard"], kv_heads=1)
    again = TrainSpec.from_json(one.to_json())
    assert again == one
    assert again.betas == (0.9, 0.95)


def test_every_size_is_a_valid_spec():
    for size in SIZES:
        made = TrainSpec.sized(size, design="post-norm", lr=None)
        assert made.hidden % made.heads == 0
        assert made.lr == SIZES[size]["lr"], "None leaves the size's own value"


def test_a_budget_in_tokens_becomes_steps():
    made = TrainSpec.sized("tiny", design="post-norm", tokens=10_000)
    assert made.tokens_per_step == 1024
    assert made.total_steps == 10


def test_warmup_is_a_share_or_a_count(spec):
    assert spec(steps=100, warmup=0.1).warmup_steps == 10
    assert spec(steps=100, warmup=7).warmup_steps == 7
    assert spec(steps=100, warmup=0).warmup_steps == 0


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"hidden": 30, "heads": 4}, ["hidden (30)", "divisible by heads (4)", "try hidden"]),
        ({"heads": 2, "kv_heads": 3}, ["heads (2)", "kv_heads (3)"]),
        ({"steps": None}, ["either steps or tokens"]),
        ({"tokens": 100}, ["either steps or tokens", "steps=8 and tokens=100"]),
        ({"lr": float("nan")}, ["lr", "finite"]),
        ({"lr": "fast"}, ["lr must be a finite number", "'fast'"]),
        ({"layers": 2.0}, ["layers must be a whole number"]),
        ({"layers": True}, ["layers must be a whole number"]),
        ({"compile": 1}, ["compile must be true or false"]),
        ({"objective": "nsp"}, ["objective must be one of 'mlm', 'clm'", "'nsp'"]),
        ({"schedule": "cosin"}, ["'cosine'", "'cosin'"]),
        ({"dropout": 1.0}, ["dropout", "[0, 1)"]),
        ({"warmup": 9}, ["warmup (9 steps)", "the run (8 steps)"]),
        ({"mask_rate": 0.0}, ["mask_rate"]),
        ({"seq": 2}, ["seq must be at least 8"]),
        ({"vocab_size": 10}, ["vocab_size must be at least 300"]),
        ({"betas": (0.9, 1.0)}, ["betas"]),
        ({"betas": (0.9,)}, ["betas"]),
        ({"design": " "}, ["design must not be empty"]),
        ({"seed": -1}, ["seed"]),
        ({"model_options": 3}, ["model_options"]),
    ],
)
def test_a_bad_setting_is_one_message(spec, settings, parts):
    with pytest.raises(TrainError) as caught:
        spec(**settings)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: TrainSpec.from_dict({"design": "x", "step": 3}), "did you mean 'steps'"),
        (lambda: TrainSpec.from_dict({"steps": 3}), "needs a design"),
        (lambda: TrainSpec.from_dict([]), "JSON object"),  # type: ignore[arg-type]
        (lambda: TrainSpec.from_json("{"), "must be JSON"),
        (lambda: TrainSpec.load("/nowhere/spec.json"), "No such file"),
        (lambda: TrainSpec.sized("huge", design="x"), "tiny, small, base, large"),
    ],
)
def test_a_bad_source_is_one_message(call, part):
    with pytest.raises(TrainError, match=part):
        call()


def test_differences_leave_out_what_changes_no_weight(spec):
    one = spec()
    assert one.differences(spec(eval_every=3, measure_every=2, save_steps=1, report_to=("wandb",))) == []
    assert one.differences(spec(lr=0.5, dropout=0.0)) == ["dropout: 0.1 -> 0.0", "lr: 0.01 -> 0.5"]
    assert one.sha256() == spec(eval_every=3).sha256() != spec(seed=1).sha256()


def test_a_spec_cannot_be_changed(spec):
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().lr = 1.0


def test_a_spec_needs_no_torch():
    code = "import sys, sublayer.train as t; t.TrainSpec(design='x', steps=1); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
