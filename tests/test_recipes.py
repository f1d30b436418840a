"""Recipes: every value has a source, the models are the published ones, mistakes are one message, and a run resumes."""

import json
import random
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import PreTrainedConfig

import sublayer as sl
from sublayer.cli import main
from sublayer.cli.training import train
from sublayer.cost import cost
from sublayer.model import SublayerConfig, SublayerForCausalLM, SublayerForMaskedLM
from sublayer.model.recipes import recipe as config_of
from sublayer.recipes import FOLDER, UNPRICED, RecipeError, load, names
from sublayer.sizes import Sizes
from sublayer.train import TrainSpec
from sublayer.train.dry_run import Machine, dry_run
from sublayer.train.from_recipe import TRIAL, departures, settings
from tools import recipes as proof

# Parameters of the published checkpoints with their language heads: transformers' count of each.
PUBLISHED = {"saf-roberta-large": 355_412_057, "saf-bert-large-uncased": 335_174_458, "gpt2-medium-series": 354_823_168}


def test_the_folder_of_the_repository_is_the_package_s() -> None:
    root = Path(__file__).parent.parent
    assert sorted(path.name for path in (root / "recipes").glob("*.yaml")) == [f"{name}.yaml" for name in names()]
    assert (root / "recipes").resolve() == FOLDER.resolve()


def test_what_the_issue_asks_for_is_there() -> None:
    twins = [f"{kind}-{model}" for kind in ("paf", "saf") for model in ("bert-large-uncased", "roberta-large")]
    assert {*twins, "gpt2-medium-series", "gpt2-medium-parallel", "output-norm-96"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_every_value_has_a_source(name: str) -> None:
    recipe = load(name)
    for section in ("model", "data", "training"):
        for key in getattr(recipe, section):
            source = recipe.source(section, key)
            told = re.search(r"\d{4}\.\d{5}|GPT-2\), section|our choice|config|code", source)
            assert told, f"{section}.{key}: {source}"
    assert recipe.about
    assert recipe.differs or "parallel" in name


def test_settings_of_a_model_are_known_without_torch() -> None:
    known, settable = {field.name for field in fields(Sizes)} | UNPRICED, set(SublayerConfig.__dataclass_fields__)
    assert known <= settable
    assert settable - set(PreTrainedConfig.__dataclass_fields__) <= known


@pytest.mark.parametrize("name", names())
def test_the_model_is_as_large_as_its_cost_and_as_the_published_one(name: str) -> None:
    config = config_of(name)
    kind = SublayerForCausalLM if load(name).training["objective"] == "clm" else SublayerForMaskedLM
    with torch.device("meta"):
        model = kind(config)
    model.tie_weights()
    counted = sum(p.numel() for p in model.parameters())
    assert cost(config).parameters == counted
    assert counted == PUBLISHED.get(name, counted)


def test_paf_differs_from_saf_by_the_wiring_alone() -> None:
    for published in ("bert-large-uncased", "roberta-large"):
        serial, parallel = load(f"saf-{published}"), load(f"paf-{published}")
        assert {k: v for k, v in serial.model.items() if k != "design"} == {
            k: v for k, v in parallel.model.items() if k != "design"
        }
        assert serial.training == parallel.training
        assert "not published" in parallel.source("training", "lr")


def test_the_numbers_of_the_papers() -> None:
    roberta, bert, gpt = load("saf-roberta-large"), load("saf-bert-large-uncased"), load("gpt2-medium-series")
    assert (roberta.steps, roberta.tokens) == (500_000, 500_000 * 8192 * 512)
    assert [(p.steps, p.seq) for p in bert.phases] == [(900_000, 128), (100_000, 512)]
    assert round(gpt.tokens / 1e9) == 300
    for recipe, steps in ((roberta, 30_000), (bert, 10_000), (gpt, 716)):
        spec = TrainSpec.from_dict(_run_settings(recipe))
        assert spec.warmup_steps == steps
        assert spec.total_steps == recipe.steps


def _run_settings(recipe: Any, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in settings(recipe, **changes).items() if value is not None}


@pytest.mark.parametrize("name", names())
def test_a_run_has_the_recipe_s_settings(name: str) -> None:
    recipe = load(name)
    spec = TrainSpec.from_dict(_run_settings(recipe))
    assert spec.rows_per_step == recipe.training["global_batch"]
    for key in ("lr", "eps", "weight_decay", "clip", "schedule", "objective", "seq", "dtype"):
        assert getattr(spec, key) == recipe.training[key]
    model = SublayerConfig(**{**spec.model_settings(), "pad_token_id": recipe.model.get("pad_token_id")})
    assert cost(model).parameters == cost(config_of(name)).parameters
    for key in ("norm_eps", "qk_norm", "position_counting", "hidden_dropout_prob"):
        assert getattr(model, key) == getattr(config_of(name), key)


def test_fewer_layers_or_steps_make_a_trial_that_says_so() -> None:
    recipe = load("paf-roberta-large")
    chosen = settings(recipe, layers=2, steps=4, seq=None)
    assert {key: chosen[key] for key in TRIAL} == TRIAL
    assert (chosen["hidden"], chosen["model_options"]["vocab_size"], chosen["layers"]) == (1024, 50265, 2)
    told = departures(recipe, chosen)
    assert "layers: 24 -> 2" in told
    assert "batch: 32 -> 1" in told
    assert settings(recipe, layers=2, batch=3)["batch"] == 3
    assert not any("steps" in line for line in departures(recipe, settings(recipe, data="text.txt")))


# -- mistakes ------------------------------------------------------------------------------------------------------


GROUP = "{source: our choice, values: {%s}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "cannot be read as YAML"),
        ("[1, 2]", "must hold the sections"),
        ("modle: []", "'modle' is nothing that a recipe says (nearest: model)"),
        ("model: [" + GROUP % "hiden_size: 4" + "]", "nearest: hidden_size"),
        ("training: [" + GROUP % "lrr: 4" + "]", "nearest: lr"),
        ("training: [{values: {lr: 1}}]", "each with a source"),
        ("training: [{source: '', values: {lr: 1}}]", "each with a source"),
        ("training: [" + GROUP % "lr: fast" + "]", "lr must be a number of at least 0, got 'fast'"),
        ("training: [" + GROUP % "objective: nsp" + "]", "objective must be one of mlm, clm, got 'nsp'"),
        ("training: [" + GROUP % "tokens: 100" + "]", "either steps or tokens"),
        ("training: [" + GROUP % "'phases': [{share: 0.5, seq: 8}]" + "]", "must sum to 1"),
        ("extends: no-such-recipe", "got 'no-such-recipe'"),
        ("extends: 3", "extends must be the name"),
        ("differs: yes", "differs must be a list"),
    ],
)
def test_a_bad_recipe_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text if "extends" in text or text[0] == "[" else f"extends: saf-roberta-large\n{text}\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_without_a_model_and_one_that_extends_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about: nothing\n")
    with pytest.raises(RecipeError, match="says nothing of design, vocab_size"):
        load(path)
    path.write_text(f"extends: {path}\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "paf-roberta-larg", "--dry-run"], "nearest: paf-roberta-large"),
        (["--recipe", "paf-roberta-large", "--dry-run", "--gpus", "9000"], "gpus (9000) must be at most"),
        (["--recipe", "paf-roberta-large", "--dry-run", "--mfu", "40"], "mfu is a share"),
        (["--recipe", "paf-roberta-large", "--dry-run", "--seq", "4096"], "max_position_embeddings"),
        (["--recipe", "paf-roberta-large", "--dry-run", "--heads", "7"], "must be divisible by heads (7)"),
        (["x = x + foo(x)", "--recipe", "paf-roberta-large", "--dry-run"], "foo"),
        (["--recipe", "paf-roberta-large"], "give --out FOLDER"),
        (["--dry-run"], "give --recipe NAME"),
        (["--out", "nowhere"], "give a DESIGN, or --recipe NAME"),
    ],
)
def test_a_mistake_on_the_command_line_exits_with_2(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sublayer", "train", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not Path("nowhere").exists()


# -- the dry run -----------------------------------------------------------------------------------------------------


def dry(*words: str) -> Result:
    return CliRunner().invoke(train, ["--dry-run", *words], catch_exceptions=False)


def test_a_dry_run_in_words_and_as_json() -> None:
    told = dry("--recipe", "saf-roberta-large", "--gpus", "64").output
    assert "355,412,057" in told
    assert "500,000 steps of 8192 x 512" in told
    assert "40% of them reached" in told
    assert "9.89e+14" in told
    data = json.loads(dry("--recipe", "saf-roberta-large", "--gpus", "64", "--json").output)
    assert data["parameters"] == 355_412_057
    assert data["passes"] * data["batch"] * 64 == 8192
    assert data["flops"] == pytest.approx(data["flops_per_step"] * 500_000)
    assert {(p["sharding"], p["checkpointing"]) for p in data["placements"]} == {
        (sharding, again) for sharding in ("DDP", "sharded") for again in (False, True)
    }


def test_memory_and_days_of_a_dry_run() -> None:
    recipe = load("gpt2-medium-series")
    spec = TrainSpec.from_dict(_run_settings(recipe))
    one, eight = (dry_run(recipe, spec, Machine(gpus=n)) for n in (1, 8))
    assert one.flops == eight.flops
    assert one.placements[0].days == pytest.approx(8 * eight.placements[0].days)
    assert one.placements[0].sharding == "one GPU"
    assert one.placements[0].days == pytest.approx(one.flops / (989e12 * 0.4) / 86_400)
    by = {(p.sharding, p.checkpointing): p for p in eight.placements}
    for p in by.values():
        assert p.total == p.standing + p.passing + p.gathered
        assert p.fits == (p.total + 2e9 <= 80e9)
    assert by["sharded", False].standing == 16 * one.parameters // 8
    assert by["DDP", False].gathered == 4 * one.parameters
    assert by["DDP", True].passing < by["DDP", False].passing
    assert by["DDP", True].days > by["DDP", False].days
    small = dry_run(recipe, spec, Machine(gpus=8, memory=by["DDP", True].total + 2e9))
    assert [p.fits for p in small.placements if p.sharding == "DDP"] == [False, True]


def test_phases_are_counted_each_at_its_length() -> None:
    recipe = load("saf-bert-large-uncased")
    spec = TrainSpec.from_dict(_run_settings(recipe))
    both = dry_run(recipe, spec, Machine())
    assert both.tokens == 256 * (900_000 * 128 + 100_000 * 512)
    at = {seq: cost(config_of("saf-bert-large-uncased"), batch=32, seq=seq) for seq in (128, 512)}
    expected = 8 * (900_000 * at[128].model_flops + 100_000 * at[512].model_flops)
    assert both.flops == pytest.approx(expected)


def test_a_dry_run_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['sublayer', 'train', '--recipe', 'output-norm-96', '--dry-run', '--gpus', '8']\n"
        "from sublayer.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# -- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_starts_is_killed_and_resumes(tmp_path: Path) -> None:
    """A user's recipe that extends one of ours, small; `tools/recipes.py` does the same with all at full width."""
    draw = random.Random(0)
    words = "the a residual stream norm layer reads writes adds token sees no other document".split()
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(30):
        (texts / f"{i}.txt").write_text(" ".join(draw.choices(words, k=200)))
    path = tmp_path / "small.yaml"
    path.write_text(
        "extends: paf-roberta-large\n"
        "model: [{source: our choice, values: {hidden_size: 32, num_attention_heads: 2, intermediate_size: 64}}]\n"
    )
    args = Namespace(layers=2, steps=4, seq=32, threads=1, data=str(texts), cache=str(tmp_path / "cache"))
    row = proof.prove(str(path), tmp_path / "runs", args)
    assert row["status"] == "ok"
    assert row["steps_done"] == 4
    assert 2 <= row["killed_after_step"] < 4
    made = sl.SublayerConfig.from_pretrained(tmp_path / "runs" / "plain")
    assert (made.hidden_size, made.num_hidden_layers, made.vocab_size) == (32, 2, 50265)
    assert sl.parse(made.design) == sl.parse("paf-bert")
    assert row["parameters"] == cost(made).parameters
