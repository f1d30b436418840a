"""The record of a study made of parts: page, README and figures say the same, lose nothing, and keep names as text."""

import copy
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sublayer import report
from sublayer.report import record_blocks, record_figures, record_markdown
from tests.report import html_reader, made_up_record

SVG = "{http://www.w3.org/2000/svg}"
ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }} &amp; </style>",
    "a\x00b\ud800|c`d",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    report.write_record(made_up_record.build(), folder)
    return folder


def text_of(path: Path) -> str:
    root, problems = html_reader.read(path)
    assert problems == []
    return " ".join(root.text.split())


def words_of(picture: Path) -> str:
    """All the text of a figure, its style aside; fails when the XML is not well-formed."""
    root = ET.parse(picture).getroot()
    return " ".join(e.text or "" for e in root.iter() if e.tag in (f"{SVG}text", f"{SVG}title"))


def schema(root: Path) -> Any:
    return json.loads((root / "src" / "sublayer" / "study" / "record.schema.json").read_text(encoding="utf-8"))


def test_page_and_readme_show_every_block(folder: Path) -> None:
    record = made_up_record.build()
    page, readme = text_of(folder / "report.html"), (folder / "README.md").read_text(encoding="utf-8")
    for part in record["parts"]:
        for line in (*part["verdicts"], *part["caveats"], *(t["title"] for t in part["tables"] + part["charts"])):
            assert line in page
            assert line in readme
    for text in (page, readme):
        assert record["question"] in text
        assert "sublayer compare --config 'studies/depth of norms/study.yaml'" in text
        assert record["config_sha256"] in text
        assert "torch 2.13.0" in text
        assert "0123456789abcdef" * 4 in text
        assert "3.646" in text
        assert "1 h 12" in text.replace("\u00a0", " ")
    assert "kind: train" in page
    assert "secret-of-details" not in page + readme


def test_the_verdict_comes_first_in_the_readme(folder: Path) -> None:
    heads = re.findall(r"^#+ (.*)$", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    assert heads == ["Norm placement against depth", "Verdict", "Run it again", "Environment", "Seeds and budget",
                     "Results", "depth (train)", "two-claims (claims)", "Caveats", "Files"]  # fmt: skip


def test_the_files_that_the_readme_links_are_there(folder: Path) -> None:
    found = re.findall(r"\]\(([^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))
    own = {name for name in found if not name.startswith("parts/") and name != "results.json"}
    assert own == {"report.html", "figure-1.svg", "figure-2.svg", "figure-3.svg"}
    assert {path.name for path in folder.iterdir()} == {*own, "README.md"}
    assert "parts/depth/96%20cold/report.html" in found


def test_lost_points_are_gaps_and_are_listed(folder: Path) -> None:
    page, readme = text_of(folder / "report.html"), (folder / "README.md").read_text(encoding="utf-8")
    for text in (page, readme, words_of(folder / "figure-2.svg")):
        assert "post-norm at 48 (no value), 96 (no value); paf at 48 (no value), 96 (no value)" in text
    assert "FFN, all of the held-out text at 12 (0 has no place on a logarithmic axis)" in page
    assert "Outside the frame: a layer far away, x = 3000." in page
    # A gap parts a line in two: one path for attention, two for the FFN.
    lines = [
        e for e in ET.parse(folder / "figure-3.svg").getroot().iter(f"{SVG}path")
        if e.get("class", "").startswith("ln d1") and "L" in e.get("d", "")
    ]  # fmt: skip
    assert len(lines) == 2


def test_each_point_is_in_the_table_behind_the_chart(folder: Path) -> None:
    root, _ = html_reader.read(folder / "report.html")
    tables = {t.all("caption")[0].text: t for t in root.all("table")}
    rows = [
        [c.text for c in row.children]
        for row in tables["The numbers of “Held-out loss by depth, without warm-up”"].all("tr")
    ]
    assert len(rows) == 1 + 6 * 5
    assert ["post-norm", "96 (no value)", "–", "–", "–"] in rows


def test_series_differ_in_colour_dash_and_marker(folder: Path) -> None:
    text = (folder / "figure-1.svg").read_text(encoding="utf-8")
    for i in range(6):
        assert f'class="ln d{i} k0"' in text
    assert len(set(re.findall(r"\.ln\.d[0-7] \{ fill: none; stroke: (#\w+)", text))) == 8
    assert len(set(re.findall(r"^\.ln\.d[1-7] \{ stroke-dasharray: ([^;]+)", text, re.M))) == 6


def test_figures_stand_alone_on_a_light_ground(folder: Path) -> None:
    for number in (1, 2, 3):
        text = (folder / f"figure-{number}.svg").read_text(encoding="utf-8")
        assert "var(" not in text
        assert "url(" not in text
        assert "href" not in text
        assert ".ground { fill: #fffffb; }" in text
        assert words_of(folder / f"figure-{number}.svg").startswith(("Held-out loss by depth", "Norm of the term"))


def test_the_sheet_has_every_colour_of_a_chart() -> None:
    assert {f".ln.d{i}" for i in range(8)} <= set(re.findall(r"^(\S+) \{", record_figures.sheet(), re.M))


def test_the_page_asks_for_nothing_and_runs_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_text_of_a_record_stays_text(attack: str, tmp_path: Path) -> None:
    record = made_up_record.build()
    record["title"] = record["question"] = attack
    record["command"].append(attack)
    record["versions"][attack] = record["machine"]["cpu"] = attack
    for part in record["parts"]:
        part["name"] += attack
        part["verdicts"].append(attack)
        part["caveats"].append(attack)
        part["facts"][attack] = attack
        part["facts"]["pages"] = {attack: f"parts/{attack}"}
        for block in part["tables"] + part["charts"]:
            block["title"], block["note"] = attack, attack
        part["tables"][0]["head"][0] = attack
        part["tables"][0]["rows"][0][0] = attack
        chart = part["charts"][0]
        chart["x"] = chart["y"] = chart["series"][0]["name"] = chart["marks"][0]["name"] = attack
    report.write_record(record, tmp_path)
    root, problems = html_reader.read(tmp_path / "report.html")
    assert problems == []
    assert {e.name for e in root.walk()} & {"script", "img", "iframe"} == set()
    shown = record_blocks.clean(attack)
    assert " ".join(shown.split()) in " ".join(root.text.split())
    for picture in tmp_path.glob("figure-*.svg"):
        assert {e.tag for e in ET.parse(picture).getroot().iter()} <= {
            SVG + name for name in ("svg", "title", "style", "rect", "text", "path", "circle", "line")
        }
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", readme, flags=re.M | re.S)
    assert not re.search(r"(?<!\\)<", outside)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b and *c*", r"a_b and \*c\*"),
        ("_x_", r"\_x\_"),
        ("# no head\n- no item", r"\# no head - no item"),
        ("1. no list", r"1\. no list"),
        ("3.5 stays", "3.5 stays"),
        ("-3 stays", "-3 stays"),
        ("a | b <b> &lt; $x$", r"a \| b \<b\> \&lt; \$x\$"),
        ("[a](javascript:b)", r"\[a\](javascript:b)"),
    ],
)
def test_words_of_markdown(text: str, expected: str) -> None:
    assert record_markdown.words(text) == expected


def test_links_stay_inside_the_folder(tmp_path: Path) -> None:
    record = made_up_record.build()
    record["parts"][0]["facts"]["pages"] = {
        "good": "parts/depth/report.html", "up": "../secret", "root": "/etc/passwd", "code": "javascript:alert(1)"
    }  # fmt: skip
    report.write_record(record, tmp_path)
    root, _ = html_reader.read(tmp_path / "report.html")
    links = {e.text: e.attributes["href"] for e in root.all("a")}
    assert links["good"] == "parts/depth/report.html"
    assert "up" not in links
    assert "root" not in links
    assert links["code"] == "javascript%3Aalert%281%29"  # a file's name, not a scheme


def test_figures_of_an_earlier_record_go(tmp_path: Path) -> None:
    record = made_up_record.build()
    for name in ("figure-4.svg", "figure-9a.svg", "figure-own.svg"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    report.write_record(record, tmp_path)
    assert {p.name for p in tmp_path.glob("*.svg")} == {f"figure-{i}.svg" for i in ("1", "2", "3", "9a", "own")}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1, 2048], ["1", "2,048"]),
        ([4.6201, 3.9, None], ["4.620", "3.900", "–"]),
        ([0.5, -0.0123], ["0.5000", "−0.0123"]),
        ([1e-6, 100.0], ["1.00×10⁻⁶", "100"]),
        ([12345.6, 3.25], ["12,300", "3.25"]),
        ([float("nan"), 1.5], ["–", "1.500"]),
        ([0.0, 0.25], ["0.0000", "0.2500"]),
        (["yes", 3], ["yes", "3"]),
        ([68.0123, 1.0], ["68.01", "1.00"]),
    ],
)
def test_digits_of_a_column(column: list[object], expected: list[str]) -> None:
    block = {"title": "t", "head": ["a"], "rows": [[value] for value in column]}
    shown = [row[0].text for row in record_blocks.grid(block, "p").rows]
    assert shown == expected


def test_values_that_are_not_finite_are_lost_not_drawn() -> None:
    points = [{"x": 1, "y": math.inf}, {"x": 2, "y": 3.0}, {"x": 3, "y": math.nan}]
    chart = record_blocks.chart({"title": "t", "series": [{"name": "a", "points": points}]}, "p")
    assert [spot.x for spot in chart.series[0].spots] == [2.0]
    assert chart.lost == "a at 1 (no value), 3 (no value)"


@pytest.mark.parametrize("change", ["no parts", "no charts", "all lost", "one point", "twelve series"])
def test_small_and_large_records_are_written_too(change: str, tmp_path: Path, root: Path) -> None:
    record = made_up_record.build()
    chart = record["parts"][0]["charts"][0]
    if change == "no parts":
        record["parts"], record["verdict"] = [], ""
    elif change == "no charts":
        for part in record["parts"]:
            part["charts"] = part["tables"] = part["verdicts"] = []
    elif change == "all lost":
        for point in (p for series in chart["series"] for p in series["points"]):
            point.update(y=None, low=None, high=None)
    elif change == "one point":
        chart["series"] = [{"name": "a", "points": [{"x": 5, "y": 2.0, "low": None, "high": None}]}]
    else:
        chart["series"] = [{**copy.deepcopy(chart["series"][1]), "name": f"series {i}"} for i in range(12)]
    jsonschema.validate(record, schema(root))
    report.write_record(record, tmp_path)
    text_of(tmp_path / "report.html")
    for picture in tmp_path.glob("*.svg"):
        words_of(picture)


def test_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    def fails(change: Any) -> str:
        record = made_up_record.build()
        change(record)
        with pytest.raises(record_blocks.RecordError) as caught:
            report.write_record(record, tmp_path)
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    assert "'sublayer.study/1'" in fails(lambda r: r.update(schema="sublayer.study/1"))
    assert "lacks config_sha256" in fails(lambda r: r.pop("config_sha256"))
    assert "part 2 lacks folder" in fails(lambda r: r["parts"][1].pop("folder"))
    assert "has a row of 2" in fails(lambda r: r["parts"][0]["tables"][0]["rows"].append(["a", 1]))
    bad = {"x": "six", "y": 1.0}
    assert "{'x': 'six', 'y': 1.0}" in fails(lambda r: r["parts"][0]["charts"][0]["series"][0]["points"].append(bad))


def test_the_schema_takes_the_record_and_refuses_others(root: Path) -> None:
    rules = schema(root)
    jsonschema.Draft202012Validator.check_schema(rules)
    good = made_up_record.build()
    jsonschema.validate(good, rules)
    chart = ("parts", 0, "charts", 0)
    for path, value in [
        (("schema",), "sublayer.study/1"),
        (("config_sha256",), "short"),
        (("parts", 0, "verdicts"), "one line"),
        (("parts", 0, "surprise"), 1),
        (("parts", 0, "tables", 0, "rows", 0, 0), ["nested"]),
        ((*chart, "series", 0, "points", 0, "x"), None),
        ((*chart, "series", 0, "points", 0, "y"), "lost"),
        ((*chart, "marks", 0), {"name": "nowhere"}),
    ]:
        bad: Any = copy.deepcopy(good)
        place = bad
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, rules)
