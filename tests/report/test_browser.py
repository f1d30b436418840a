"""The page in a real browser: no errors, the numbers on screen, nothing wider than the window, no script needed.

`SUBLAYER_SCREENSHOTS=FOLDER` keeps the pictures.
"""

import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from sublayer.report import numbers
from sublayer.report.view import read as read_study
from tests.report.made_up import Results

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on PATH: `apt-get install chromium` makes these tests run"
    ),
]
# The reader of the page lives outside it: the page itself runs no script.
READER = """<!DOCTYPE html><title>reader</title><iframe src="{page}" style="width:{width}px;height:2000px"></iframe>
<pre id="text"></pre><pre id="wide"></pre><script>
document.querySelector("iframe").onload = event => {{
  const inside = event.target.contentDocument, root = inside.documentElement;
  document.getElementById("text").textContent = inside.body.innerText;
  const loose = [...inside.querySelectorAll("body *")].filter(e => !e.closest(".scroll, svg, pre, math")
    && e.getBoundingClientRect().right > root.clientWidth + 1);
  document.getElementById("wide").textContent = loose.map(e => e.tagName + "." + e.className).join(" ") +
    (root.scrollWidth > root.clientWidth ? " scrolls " + root.scrollWidth : "");
}};
</script>"""


def chromium(folder: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=4000",
        "--allow-file-access-from-files", *options, url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the page wrote to the browser's console: script errors, refused requests, bad markup."""
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def seen(page: Path, folder: Path, width: int) -> tuple[str, str]:
    """(text on screen, elements that stick out) in a window of a width."""
    reader = folder / "reader.html"
    reader.write_text(READER.format(page=page.as_uri(), width=width), encoding="utf-8")
    done = chromium(folder, reader.as_uri(), "--dump-dom")
    assert complaints(done) == []
    text, wide = (
        unescape(match.group(1))
        for name in ("text", "wide")
        if (match := re.search(rf'<pre id="{name}">(.*?)</pre>', done.stdout, re.S))
    )
    return text, wide


def test_the_numbers_are_on_screen(study: tuple[Results, Path], page: Path, tmp_path: Path) -> None:
    results, folder = study
    digits = read_study(results, folder).digits
    text, wide = seen(page, tmp_path, 1200)
    assert wide.strip() == ""
    for run in results["runs"]:
        if run["eval_loss"] is not None:
            assert numbers.fixed(run["eval_loss"], digits) in text
    for row in results["comparison"]["rows"]:
        assert numbers.fixed(row["mean"], digits) in text
    assert "loss was not finite at step 120" in text
    assert results["verdict"] in text
    assert "rank-one residual, mean over seeds" in text
    assert "partition ratio, mean over seeds" not in text  # until its radio button is chosen


def test_a_telephone_shows_it_without_sideways_scrolling(page: Path, tmp_path: Path) -> None:
    text, wide = seen(page, tmp_path, 380)
    assert wide.strip() == ""
    assert "Glossary" in text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", ["--blink-settings=preferredColorScheme=1"]),
        ("dark", ["--blink-settings=preferredColorScheme=0"]),
        ("no-script", []),
    ],
)
def test_screenshots(name: str, options: list[str], page: Path, tmp_path: Path) -> None:
    kept = Path(os.environ.get("SUBLAYER_SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    picture = kept / f"report-{name}.png"
    url = page.as_uri()
    if name == "no-script":  # a sandboxed frame runs none
        frame = tmp_path / "frame.html"
        inside = f'<iframe sandbox src="{url}" style="width:1180px;height:11900px"></iframe>'
        frame.write_text(f"<!DOCTYPE html><title>frame</title>{inside}", encoding="utf-8")
        url = frame.as_uri()
    for _ in range(3):  # on a busy machine the picture may be taken before the frame is painted
        done = chromium(tmp_path, url, "--window-size=1200,12000", f"--screenshot={picture}", *options)
        assert complaints(done) == []
        if picture.stat().st_size > 300_000:
            break
    assert picture.stat().st_size > 300_000  # an empty page of this size takes a tenth of that


def test_prints_all_measures(page: Path, tmp_path: Path) -> None:
    kept = Path(os.environ.get("SUBLAYER_SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    paper = kept / "report.pdf"
    done = chromium(tmp_path, page.as_uri(), f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert complaints(done) == []
    assert paper.read_bytes()[:5] == b"%PDF-"
    assert len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) >= 6
