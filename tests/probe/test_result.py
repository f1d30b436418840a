"""`sl.probe`: its table, its page fragment, its data frame, and its name."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import sublayer as sl
from sublayer.probe import Probe, measure


@pytest.fixture(scope="module")
def model() -> sl.SublayerModel:
    config = sl.SublayerConfig(
        design="x = x + attn(norm(x)); x = x + norm(ffn(x))", vocab_size=30, hidden_size=8, num_hidden_layers=2,
        num_attention_heads=2, init_seed=0,
    )  # fmt: skip
    return sl.SublayerModel(config)


IDS = torch.arange(20).reshape(2, 10)


def _part(found: Any, like: Any) -> Any:
    """What of a record a smaller one has too: `sl.probe` gives the measure record of a study, and more."""
    if isinstance(like, dict):
        return {k: _part(found[k], v) for k, v in like.items()}
    if isinstance(like, list):
        return [_part(a, b) for a, b in zip(found, like, strict=True)]
    return found


def test_the_record(model: sl.SublayerModel) -> None:
    got = sl.probe(model, IDS, step=3)
    assert isinstance(got, Probe)
    assert got.to_dict() is got.record
    less = measure(model, IDS, step=3)
    assert less == {k: _part(v, less[k]) for k, v in got.record.items() if k in less}
    json.dumps(got.to_dict(), allow_nan=False)


def test_the_table(model: sl.SublayerModel) -> None:
    lines = str(sl.probe(model, IDS)).splitlines()
    assert lines[0].startswith("20 tokens.")
    assert lines[2].split()[:3] == ["layer", "sum", "term"]
    assert [line.split()[0] for line in lines[4:8]] == ["0", "0", "1", "1"]
    assert "x + norm(ffn(x))" in lines[5]


def test_the_page_fragment(model: sl.SublayerModel) -> None:
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            seen.append(tag)

    got = sl.probe(model, IDS)
    Reader().feed(got._repr_html_())
    assert seen.count("tr") == 5
    record = json.loads(json.dumps(got.record))
    record["sums"][0]["equation"] = "<b>"
    assert "<td>&lt;b&gt;</td>" in Probe(record)._repr_html_()


def test_the_frame(model: sl.SublayerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas", reason="to_frame needs pandas")
    got = sl.probe(model, IDS)
    frame = got.to_frame()
    assert list(frame["kind"]) == ["attn", "ffn"] * 2
    assert list(frame["layer"]) == [0, 0, 1, 1]
    assert frame["iso_score_after"][1] == got.record["sums"][1]["after"]["iso_score"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"sublayer\[frames\]"):
        got.to_frame()


@pytest.mark.parametrize("first", ["import sublayer.probe.measures", "sl.probe"])
def test_the_function_and_the_package_share_their_name(first: str) -> None:
    """`sl.probe(...)` can be called whatever was imported before, and its modules can be imported after that."""
    code = (
        f"import sublayer as sl; {first}; import sublayer.probe.capture; from sublayer.probe.measures import isotropy\n"
        "try: sl.probe(None, [])\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "got NoneType" in done.stdout
