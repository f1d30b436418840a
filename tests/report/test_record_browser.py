"""A record in a real browser: markup in names stays text, nothing sticks out on a phone, figures can be read alone.

`SUBLAYER_SCREENSHOTS=FOLDER` keeps the pictures.
"""

import os
from pathlib import Path

import pytest

from sublayer import report
from tests.report import made_up_record
from tests.report.test_browser import CHROMIUM, chromium, complaints, seen

ATTACK = "<b onclick=alert(1)>bold</b><script>document.title='taken'</script>"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on PATH: `apt-get install chromium` makes these tests run"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record in which every name is also markup."""
    record = made_up_record.build()
    part = record["parts"][0]
    record["title"] = f"Norms {ATTACK}"
    part["verdicts"].append(ATTACK)
    part["tables"][0]["rows"][1][0] = ATTACK
    part["charts"][0]["title"] = ATTACK
    part["charts"][0]["series"][0]["name"] = ATTACK
    part["charts"][0]["marks"][1]["name"] = "<i>mark</i>"
    part["facts"]["pages"][ATTACK] = "parts/depth/other.html"
    folder = tmp_path_factory.mktemp("record")
    report.write_record(record, folder)
    return folder


@pytest.mark.parametrize("width", [1200, 400])
def test_names_are_on_screen_as_they_are_spelled_and_nothing_sticks_out(
    width: int, folder: Path, tmp_path: Path
) -> None:
    text, wide = seen(folder / "report.html", tmp_path, width)
    assert wide.strip() == ""
    assert text.count(ATTACK) >= 6
    assert "3.646" in text
    assert "Lost, with a cross at the upper edge" in text
    assert "1 h 12" in text.replace("\u00a0", " ")


def test_figures_keep_markup_as_text(folder: Path, tmp_path: Path) -> None:
    done = chromium(tmp_path, (folder / "figure-1.svg").as_uri(), "--dump-dom")
    assert complaints(done) == []
    assert "&lt;i&gt;mark&lt;/i&gt;" in done.stdout
    assert "<script" not in done.stdout


@pytest.mark.parametrize(
    ("name", "scheme", "size"), [("light", 1, "1200,2600"), ("dark", 0, "1200,2600"), ("figure", 1, "640,600")]
)
def test_pictures(name: str, scheme: int, size: str, folder: Path, tmp_path: Path) -> None:
    kept = Path(os.environ.get("SUBLAYER_SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    picture = kept / f"record-{name}.png"
    source = folder / ("figure-2.svg" if name == "figure" else "report.html")
    options = [f"--window-size={size}", f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={scheme}"]
    done = chromium(tmp_path, source.as_uri(), *options)
    assert complaints(done) == []
    assert picture.stat().st_size > (20_000 if name == "figure" else 150_000)  # an empty one takes a tenth of that
