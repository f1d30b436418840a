"""Strings of users on every page that is written, in a real browser: markup and script stay text.

Each string of a record (names, paths, reasons, notes, texts of data) is given an end that would run as a script, close
the element that it stands in, load a picture or lead a link elsewhere. The pages are opened side by side in one
browser, and asked what they hold.
"""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

import sublayer as sl
from sublayer import report
from sublayer.finetune.result import Finetuning
from sublayer.report.probe_page import write_probe
from sublayer.study.study import Study
from tests.report import made_up_record
from tests.report.made_up import PAF, POST, build
from tests.report.test_browser import CHROMIUM, chromium, complaints

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on PATH: `apt-get install chromium` makes these tests run"
    ),
]
HIT = "top.__hit=1;window.__hit=1;document.title='taken'"
ATTACK = (
    f'<script>{HIT}</script>"\'><img src=x onerror="{HIT}"></title></style></textarea></svg></pre><b id=taken>'
    f'<svg onload={HIT}><a href="javascript:{HIT}">{{{{7*7}}}}</a><!--'
)
SIGN = "<script>top.__hit=1"  # what of it must be on the screen
# What a page is chosen, found or drawn by, and not shown as it is given.
KEPT = frozenset({"schema", "status", "claim", "kind", "answer", "metrics", "folder"})
# The reader of the pages lives outside them and asks each.
READER = """<!DOCTYPE html><title>reader</title>{frames}<pre id="found"></pre><script>
window.addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, all = [...page.querySelectorAll("*")];
    return {{
      title: page.title,
      hit: window.__hit === undefined && frame.contentWindow.__hit === undefined,
      active: all.filter(e => /^(script|img|iframe|object|embed|form|base)$/i.test(e.tagName)
        && !/^figure-\\d+\\.svg$/.test(e.getAttribute("src") || "") || e.id === "taken"
        || [...e.attributes].some(a => /^on/i.test(a.name))
        || /^\\s*javascript:/i.test(e.getAttribute("href") || "")).map(e => e.outerHTML.slice(0, 300)),
      links: [...page.querySelectorAll("a[href]")].map(e => e.getAttribute("href")),
      fetched: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name)
        .filter(name => !/[/]figure-\\d+\\.svg$/.test(name)),
      text: (page.body || page.documentElement).textContent,
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>"""


def hostile(value: Any, key: str = "") -> Any:
    """A record with the attack at the end of each string that is shown."""
    if isinstance(value, dict):
        return {name: hostile(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner, key) for inner in value]
    return f"{value} {ATTACK}" if isinstance(value, str) and key not in KEPT else value


def _html(body: str, path: Path) -> Path:
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><title>n</title>{body}", encoding="utf-8")
    return path


def _study(folder: Path) -> Iterator[Path]:
    wirings = (POST, replace(PAF, title=f"PAF {ATTACK}", lost={1: ("failed", f"error {ATTACK}")}))
    results = hostile(build(folder, wirings))
    report.write(results, folder, folder / "report.html")
    yield folder / "report.html"
    yield _html(Study(folder, results)._repr_html_(), folder / "notebook.html")


def _record(folder: Path) -> Iterator[Path]:
    report.write_record(hostile(made_up_record.build()), folder)
    yield folder / "report.html"
    yield from sorted(folder.glob("figure-*.svg"))
    markdown = pytest.importorskip("markdown_it")
    text = (folder / "README.md").read_text(encoding="utf-8")
    yield _html(markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(text), folder / "readme.html")


def _model() -> Any:
    torch.manual_seed(0)
    return sl.SublayerForCausalLM(
        sl.SublayerConfig(design="paf", vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    )


def _probe(folder: Path) -> Iterator[Path]:
    found = sl.probe(_model(), {"input_ids": torch.arange(3, 30).reshape(3, 9)})
    record = hostile(copy.deepcopy(found.record))
    write_probe(record, folder / "probe.html")
    yield folder / "probe.html"
    yield _html(replace(found, record=record)._repr_html_(), folder / "notebook.html")


def _audit(folder: Path) -> Iterator[Path]:
    found = sl.audit(_model())
    stack = replace(found.stacks[0], name=ATTACK, notes=(ATTACK,), unknown=ATTACK)
    made = replace(found, target=ATTACK, stacks=(stack,), dead_parameters=(ATTACK,), unknown=ATTACK)
    yield _html(made._repr_html_(), folder / "audit.html")


class _Tuned(Finetuning):
    def __str__(self) -> str:
        return ATTACK


def _others(folder: Path) -> Iterator[Path]:
    yield _html(_Tuned(folder, {})._repr_html_(), folder / "finetune.html")
    named = sl.parse("x = x + attn(norm(x)); x = x + ffn(norm(x))").named(ATTACK)
    yield _html(f"{named._repr_html_()}<p>{SIGN.replace('<', '&lt;')}", folder / "design.html")


@pytest.mark.parametrize("make", [_study, _record, _probe, _audit, _others], ids=lambda make: make.__name__[1:])
def test_no_string_of_a_user_becomes_markup(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    pages = list(make(folder))
    assert pages
    for page, found in zip(pages, asked(pages, tmp_path), strict=True):
        assert found["hit"], page
        assert found["active"] == [], page
        assert "taken" not in found["title"] or SIGN in found["title"], page
        assert found["fetched"] == [], page
        assert all(re.match(r"#|[\w%./-]+$", link) for link in found["links"]), (page, found["links"])
        assert page.suffix == ".svg" or SIGN in found["text"], page


def test_the_attack_is_one(tmp_path: Path) -> None:
    """On a page that escapes nothing, each of the questions above has the other answer."""
    (found,) = asked([_html(f"<p>{ATTACK}", tmp_path / "bare.html")], tmp_path, quiet=False)
    assert not found["hit"]
    assert len(found["active"]) >= 4
    assert found["title"] == "taken"


def asked(pages: list[Path], folder: Path, quiet: bool = True) -> list[dict[str, Any]]:
    """What each page holds once it is open."""
    reader = folder / "reader.html"
    frames = "".join(f'<iframe src="{page.as_uri()}"></iframe>' for page in pages)
    reader.write_text(READER.format(frames=frames), encoding="utf-8")
    done = chromium(folder, reader.as_uri(), "--dump-dom")
    if quiet:
        assert complaints(done) == []
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert match, done.stdout[-2000:]
    return list(json.loads(unescape(match.group(1))))
