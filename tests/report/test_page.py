"""The page of a made-up study: complete, self-contained, well-formed, safe, and honest about what was lost."""

import copy
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from sublayer import report
from sublayer.report import numbers
from sublayer.report import page as page_module
from sublayer.report.view import read as read_study
from tests.report import html_reader, made_up
from tests.report.made_up import FOUR, INPUT, MIX, PAF, POST, Results, build

ALL_LOST = {0: ("failed", "RuntimeError: out of paper"), 1: ("killed", "signal 9")}


def written(results: Results, folder: Path) -> Path:
    out = folder / "report.html"
    report.write(results, folder, out)
    return out


def text_of(path: Path) -> str:
    root, problems = html_reader.read(path)
    assert problems == []
    return " ".join(root.text.split())


def test_every_loss_and_difference_is_shown(study: tuple[Results, Path], page: Path) -> None:
    results, folder = study
    digits = read_study(results, folder).digits
    shown = text_of(page)
    for run in results["runs"]:
        if run["eval_loss"] is not None:
            assert numbers.fixed(run["eval_loss"], digits) in shown
            assert f'<data value="{run["eval_loss"]!r}">' in page.read_text()
    for row in results["comparison"]["rows"]:
        assert numbers.fixed(row["mean"], digits) in shown
        if row["difference"] is not None:
            assert numbers.fixed(row["difference"], digits, True) in shown


def test_says_verdict_caveats_fairness_and_how_to_reproduce(study: tuple[Results, Path], page: Path) -> None:
    results, _ = study
    shown = text_of(page)
    for text in (results["verdict"], *results["caveats"], *results["fairness"]["notes"]):
        assert text in shown
    assert results["data"]["sha256"] in shown
    assert "sublayer compare post-norm paf input-norm mix-ln --seeds 0,1" in shown
    assert all(version in shown for version in results["versions"].values())
    for claim in results["claims"]:
        assert claim["question"] in shown
        assert claim["rule"] in shown


def test_sections_come_in_order(page: Path) -> None:
    root, _ = html_reader.read(page)
    assert [section.attributes["id"] for section in root.all("section")] == [
        "verdict", "fairness", "designs", "curves", "results", "claims", "layers", "training", "cost", "reproduce",
        "glossary",
    ]  # fmt: skip


def test_lost_and_unmeasured_runs_are_named(study: tuple[Results, Path], page: Path) -> None:
    assert "mix-ln, seed 1:" in text_of(page)
    assert "loss was not finite at step 120" in text_of(page)
    assert "1 of 2" in text_of(page)


def test_is_small_and_asks_for_nothing(page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    assert len(source.encode()) < 2_000_000
    allowed = source.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1998/Math/MathML", "")
    assert not re.search(r"https?:|//[a-z0-9-]+\.|url\(|@import|<link|<script|<iframe|<object|<embed", allowed, re.I)
    root, _ = html_reader.read(page)
    for element in root.walk():
        assert not [name for name in element.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        if "href" in element.attributes:
            assert element.attributes["href"].startswith("#")
    policy = [meta.attributes.get("content", "") for meta in root.all("meta")]
    assert any(content.startswith("default-src 'none'") and "script-src" not in content for content in policy)


def test_markup_is_sound(page: Path) -> None:
    root, problems = html_reader.read(page)
    assert problems == []
    ids = [element.attributes["id"] for element in root.walk() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    targets = {element.attributes["href"][1:] for element in root.all("a")}
    assert targets <= set(ids)
    levels = [int(element.name[1]) for element in root.walk() if re.fullmatch(r"h[1-6]", element.name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_charts_can_be_read_without_eyes(page: Path) -> None:
    root, _ = html_reader.read(page)
    pictures = [svg for svg in root.all("svg") if svg.parent and svg.parent.name != "svg"]
    assert len(pictures) > 40
    for svg in pictures:
        named = svg.attributes.get("aria-label") or svg.attributes.get("aria-labelledby")
        assert svg.attributes.get("aria-hidden") == "true" or (svg.attributes.get("role") == "img" and named)
    for figure in root.all("figure"):
        if figure.attributes.get("class") != "strip":  # its numbers are those of the table of results
            assert figure.all("table"), figure.attributes
    for table in root.all("table"):
        assert table.all("caption")
        assert all(head.attributes.get("scope") in ("row", "col") for head in table.all("th"))


def test_all_five_measures_of_isotropy_are_there(page: Path) -> None:
    root, _ = html_reader.read(page)
    radios = [field.attributes["value"] for field in root.all("input")]
    assert len(radios) == 5
    style = (Path(page_module.__file__).parent / "templates" / "style.css").read_text()
    for value in radios:
        assert f'[value="{value}"]:checked) #tab-{value}' in style


@pytest.mark.parametrize(
    "attack", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</title></style>&lt;b>"]
)
def test_strings_of_the_results_stay_text(attack: str, tmp_path: Path) -> None:
    lost = {1: ("failed", f"error {attack}")}
    results = build(tmp_path, (POST, replace(PAF, title=f"PAF {attack}", lost=lost)))
    results["data"].update(spec=f"/tmp/{attack}.txt", tokenizer=f"/tmp/tok {attack}")
    results["verdict"] += attack
    results["command"].append(attack)
    results["caveats"].append(attack)
    results["fairness"]["notes"].append(attack)
    results["setup"]["extra"] = {attack: [attack]}
    results["comparison"]["method"] = attack
    results["comparison"]["rows"][1]["note"] = attack
    results["designs"][1].update(equation=attack, block=attack, embed=attack, citation=attack)
    results["claims"][0].update(question=attack, rule=attack)
    results["claims"][0]["answers"][0]["detail"] = attack
    results["machine"]["cpu"] = attack
    for run in results["runs"]:
        for total in (run["measures"] or {"sums": []})["sums"]:
            total["stream"] = attack
            for term in total["terms"]:
                term["kind"] = f"kind {attack}"
    out = written(results, tmp_path)
    root, problems = html_reader.read(out)
    assert problems == []
    names = {element.name for element in root.walk()}
    assert not names & {"script", "img", "b"}
    assert root.text.count(attack) >= 12
    assert len(root.all("title")[0].children) == 0


def test_one_seed_has_no_intervals_and_no_bands_of_seeds(tmp_path: Path) -> None:
    out = written(build(tmp_path, seeds=(0,)), tmp_path)
    shown = text_of(out)
    root, _ = html_reader.read(out)
    curves = next(section for section in root.all("section") if section.attributes["id"] == "curves")
    assert not [path for path in curves.all("path") if path.attributes.get("class", "").startswith("band")]
    assert "bands reach" not in shown
    assert "4 designs × 1 seed:" in shown


def test_one_design_has_no_differences(tmp_path: Path) -> None:
    out = written(build(tmp_path, (POST,)), tmp_path)
    assert "post-norm, trained and measured" in text_of(out)
    assert "<del>" not in out.read_text()


def test_a_study_without_a_finished_run_is_still_a_page(tmp_path: Path) -> None:
    results = build(tmp_path, [replace(wiring, lost=ALL_LOST) for wiring in FOUR])
    shown = text_of(written(results, tmp_path))
    assert "No run finished" in shown
    assert shown.count("RuntimeError: out of paper") >= 8
    assert "No finished run was measured." in shown


def test_nothing_run_yet(tmp_path: Path) -> None:
    results = build(tmp_path)
    for run in results["runs"]:
        run.update(status="missing", eval_loss=None, measures=None, metrics=None, reason="not run yet")
        run.update(seconds=None, tokens_per_second=None, peak_memory_mb=None, train_loss=None, steps_done=0)
    for row in results["comparison"]["rows"]:
        row.update(mean=None, sd=None, n=0, lost=2, difference=None, low=None, high=None)
    assert "not run: not run yet" in text_of(written(results, tmp_path))


def test_damaged_metrics_leave_gaps_not_errors(tmp_path: Path) -> None:
    results = build(tmp_path)
    first, second, third, *_ = (tmp_path / run["metrics"] for run in results["runs"])
    first.write_bytes(b"\xff\xfe\x00 not json\n[1, 2]\n{}\n")
    second.unlink()
    third.write_text('{"kind": "eval", "step": 20, "loss": NaN}\n{"kind": "train", "step": null}\n')
    results["runs"][4]["metrics"] = "../../../etc/hostname"
    assert results["verdict"] in text_of(written(results, tmp_path))


def test_a_resumed_run_shows_the_later_record(tmp_path: Path) -> None:
    results = build(tmp_path, (POST,), seeds=(0,))
    with (tmp_path / results["runs"][0]["metrics"]).open("a") as metrics:
        metrics.write(json.dumps({"kind": "eval", "step": 20, "loss": 3.25, "flops": 1.0}) + "\n")
    run = read_study(results, tmp_path).designs[0].runs[0]
    assert [e.loss for e in run.evals if e.step == 20] == [3.25]


def test_measures_that_are_not_defined_are_left_out(tmp_path: Path) -> None:
    results = build(tmp_path)
    for run in results["runs"]:
        for total in (run["measures"] or {"sums": []})["sums"]:
            total["after"] = dict.fromkeys(total["after"])
            total["terms"][0]["ratio"] = dict.fromkeys(total["terms"][0]["ratio"])
        for layer in (run["measures"] or {"layers": []})["layers"]:
            layer.update(gradient_norm=None, attention=[])
    assert results["verdict"] in text_of(written(results, tmp_path))


def test_many_learning_rates_are_compared_at_the_stated_one(tmp_path: Path) -> None:
    results = build(tmp_path)
    more = copy.deepcopy(results["runs"])
    for run in more:
        run.update(id=run["id"] + "-b", lr=3e-3, eval_loss=run["eval_loss"] and run["eval_loss"] - 0.5)
    results["runs"] += more
    results["setup"]["lrs"] = [1e-3, 3e-3]
    for row in results["comparison"]["rows"]:
        row["lr"] = 1e-3
    study = read_study(results, tmp_path)
    assert [run.lr for run in study.designs[0].compared] == [1e-3, 1e-3]
    shown = text_of(written(results, tmp_path))
    assert "Held-out loss by learning rate" in shown
    assert "best of 0.001, 0.003" in shown


def test_repeated_terms_of_a_layer_are_told_apart(tmp_path: Path) -> None:
    macaron = replace(INPUT, id="macaron", sums=((made_up.FFN,), (made_up.ATTN,), (made_up.FFN,)))
    shown = text_of(written(build(tmp_path, (macaron, MIX)), tmp_path))
    assert "sum with FFN 1" in shown
    assert "sum with FFN 2" in shown


def test_a_large_study_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = build(tmp_path)
    full = written(results, tmp_path).stat().st_size
    sizes = []
    for limit in (full, int(0.7 * full), int(0.5 * full), int(0.26 * full)):
        monkeypatch.setattr(page_module, "LIMIT", limit)
        out = written(results, tmp_path)
        sizes.append(out.stat().st_size)
        assert out.stat().st_size < limit
        assert "To keep this page small, it leaves out" in text_of(out)
    assert sizes == sorted(sizes, reverse=True)


def test_writes_in_one_step_and_refuses_other_schemas(tmp_path: Path) -> None:
    results = build(tmp_path, (POST,), seeds=(0,))
    results["schema"] = "sublayer.study/9"
    with pytest.raises(ValueError, match=r"sublayer\.study/1.*sublayer\.study/9.*--resume"):
        written(results, tmp_path)
    assert not (tmp_path / "report.html").exists()
    results["schema"] = "sublayer.study/1"
    written(results, tmp_path)
    assert [path.name for path in tmp_path.glob("*report*")] == ["report.html"]


def test_made_up_studies_follow_the_schema(tmp_path: Path, root: Path) -> None:
    schema = json.loads((root / "src/sublayer/study/results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert schema["properties"]["schema"]["const"] == page_module.SCHEMA
    lost = [replace(wiring, lost=ALL_LOST) for wiring in FOUR]
    for name, wirings, seeds in (("a", FOUR, (0, 1)), ("b", FOUR, (0,)), ("c", (POST,), (0, 1)), ("d", lost, (0, 1))):
        results = build(tmp_path / name, wirings, seeds)
        validator.validate(results)
        for line in (tmp_path / name / results["runs"][0]["metrics"]).read_text().splitlines():
            if line.endswith("}") and (record := json.loads(line))["kind"] == "measure":
                jsonschema.validate(record, {"$ref": "#/$defs/measure", "$defs": schema["$defs"]})
    results["runs"][0]["status"] = "fine"
    assert not validator.is_valid(results)


def test_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "altair", "pandas", "numpy")
    code = f"import sys, sublayer.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
