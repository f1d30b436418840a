"""Plans: what a study will run, before anything runs."""

import json
from pathlib import Path

import pytest

from sublayer import signed
from sublayer.notation import DesignError
from sublayer.study import DEFAULT_DESIGNS, Plan, StudyError, files, read_config
from sublayer.train import TrainError


def test_the_default_plan_is_the_four_designs_of_the_source_material() -> None:
    plan = Plan.make()
    assert [p.id for p in plan.designs] == list(DEFAULT_DESIGNS)
    assert [r.id for r in plan.runs()] == [f"{d}-lr{plan.lrs[0]:g}-s0" for d in DEFAULT_DESIGNS]


def test_runs_are_designs_by_rates_by_seeds_with_seeds_outermost() -> None:
    plan = Plan.make(["paf", "x = x + attn(norm(x))"], seeds=(0, 1), lrs=(1e-3, 3e-3), steps=10)
    runs = plan.runs()
    assert [r.index for r in runs] == list(range(8))
    assert [r.spec.seed for r in runs] == [0] * 4 + [1] * 4
    assert len({r.id for r in runs}) == 8
    assert {r.spec.lr for r in runs} == {1e-3, 3e-3}
    # Only design, rate and seed differ between runs.
    common = {
        json.dumps({k: v for k, v in r.spec.to_dict().items() if k not in ("design", "lr", "seed")}) for r in runs
    }
    assert len(common) == 1


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = Plan.make(["paf", "embed: x = e; r = e\nblock: r = r + attn(x); x = norm(r)"], seeds=(3, 4), steps=7)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    again = Plan.load(path)
    assert again == plan
    assert again.sha256() == plan.sha256()
    assert again.differences(plan) == []
    other = Plan.make(["paf", "embed: x = e; r = e\nblock: r = r + attn(x); x = norm(r)"], seeds=(3, 4), steps=8)
    assert any("steps" in d for d in again.differences(other))


def test_more_seeds_and_designs_keep_the_runs_there_are() -> None:
    assert (
        Plan.make(["paf"], seeds=(0,), steps=5).differences(Plan.make(["paf", "post-norm"], seeds=(0, 1), steps=5))
        == []
    )


@pytest.mark.parametrize(
    ("arguments", "error", "rule"),
    [
        ({"designs": ["paf", "x = norm(x + ffn(x) + attn(x))"]}, StudyError, "designs must differ"),
        ({"designs": ["pre-norm"]}, DesignError, "two designs"),
        ({"designs": ["mix-ln"], "layers": 0}, TrainError, "layers"),
        (
            {"designs": ["block[:3]: x = norm(x + attn(x))\nblock[3:]: x = x + ffn(norm(x))"], "layers": 2},
            DesignError,
            "tile the 2",
        ),
        ({"seeds": ()}, StudyError, "at least one"),
        ({"seeds": (1, 1)}, StudyError, "different"),
        ({"lrs": (1e-3, 1e-3)}, StudyError, "differ"),
        ({"size": "huge"}, StudyError, "size is one of"),
        ({"hiden": 64}, TrainError, "hidden"),
        ({"hidden": 130, "heads": 4}, TrainError, "divisible"),
        ({"lr": 0.1}, StudyError, "lrs"),
        ({"steps": 5, "tokens": 100}, TrainError, "either steps or tokens"),
    ],
)
def test_bad_plans_are_refused_before_anything_runs(
    arguments: dict[str, object], error: type[Exception], rule: str
) -> None:
    with pytest.raises(error, match=rule):
        Plan.make(**arguments)  # type: ignore[arg-type]


def test_config_files(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("designs: [paf, 'x = x + attn(norm(x))']\nseeds: [0, 1]\nkv-heads: 2\nlrs: [1e-3, 3E-4]\n")
    assert read_config(path) == {
        "designs": ["paf", "x = x + attn(norm(x))"],
        "seeds": [0, 1],
        "kv_heads": 2,
        "lrs": [1e-3, 3e-4],
    }
    for text, rule in [
        ("- a\n", "must hold settings"),
        ("designs: paf\n", "must be a list"),
        ("designs: [1]\n", "names or equations"),
        ("a: [\n", "neither YAML nor JSON"),
        ("!!python/object/apply:os.system ['true']\n", "neither YAML nor JSON"),
    ]:
        path.write_text(text)
        with pytest.raises(StudyError, match=rule):
            read_config(path)


def test_the_plan_of_a_study_is_a_config_for_the_next(tmp_path: Path) -> None:
    plan = Plan.make(
        ["paf", "x = x + attn(norm(x)) + norm(x)"], seeds=(0, 2), lrs=(1e-3, 2e-3), tokens=10_000, kv_heads=2
    )
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    assert Plan.make(**read_config(path)) == plan


def test_a_damaged_plan_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in ("", "[]", "{}", '{"designs": []}', json.dumps({**Plan.make(["paf"]).to_dict(), "setup": {}})):
        path.write_text(text)
        with pytest.raises((StudyError, DesignError, TrainError)):
            Plan.load(path)
    data = Plan.make(["paf"]).to_dict()
    data["designs"][0]["id"] = "../../outside"
    path.write_text(json.dumps(data))
    with pytest.raises(StudyError, match="letters"):
        Plan.load(path)


def test_a_changed_byte_in_a_plan_is_found(tmp_path: Path) -> None:
    path, plan = tmp_path / "plan.json", Plan.make(["paf"], seeds=(3,), steps=7)
    signed.write(path, plan.to_dict())
    assert Plan.load(path) == plan
    assert Plan.make(**read_config(path)) == plan
    text = path.read_text()
    path.write_text(text.replace('"steps": 7', '"steps": 8'))
    assert path.read_text() != text
    for read in (Plan.load, read_config):
        with pytest.raises(StudyError, match=r"changed or damaged.*remove file_sha256 if you changed it yourself"):
            read(path)
    with pytest.raises(StudyError, match="changed or damaged"):
        files.planned(tmp_path)
    files.check(plan, tmp_path, resume=True)
    assert (tmp_path / "damaged-plan.json-1").exists()
    assert not path.exists()


def test_rates_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(StudyError, match="first six digits"):
        Plan.make(lrs=(1e-3, 1.0000001e-3), steps=4)
