"""House rules that no linter knows: short files, and names that say what is inside."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sorted(file for folder in ("src", "tests", "tools") for file in (ROOT / folder).rglob("*.py"))
SOURCE = sorted((ROOT / "src").rglob("*.py"))

# "Near 400 lines": some rope, so that nobody squeezes a file that is one thing.
LONGEST = 440
# Names that say nothing: they collect what nobody knew where to put.
EMPTY_NAMES = {"utils", "util", "helpers", "common", "misc", "stuff", "base", "core"}


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def test_files_are_short() -> None:
    long = {str(file.relative_to(ROOT)): len(lines_of(file)) for file in PYTHON if len(lines_of(file)) > LONGEST}
    assert not long, f"longer than {LONGEST} lines: split them by subject"


def test_names_say_what_is_inside() -> None:
    named = [file.relative_to(ROOT) for file in PYTHON if {file.stem, *file.relative_to(ROOT).parts} & EMPTY_NAMES]
    assert not named


def test_every_module_says_what_it_is_for() -> None:
    bare = [
        str(file.relative_to(ROOT))
        for file in SOURCE
        if (text := file.read_text(encoding="utf-8").strip()) and not re.match(r'(#.*\n)*r?"""', text)
    ]
    assert not bare, "no docstring at the top"


def test_nothing_is_left_for_later() -> None:
    # Spelled apart, so that this file does not find itself.
    words = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]) + r")\b")
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in PYTHON
        for number, line in enumerate(lines_of(file), 1)
        if words.search(line)
    ]
    assert not found


def test_tests_of_a_package_lie_under_its_name() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
    packages = {path.parent.name for path in (ROOT / "src" / "sublayer").glob("*/__init__.py")}
    assert folders <= packages


def test_no_generated_file_is_tracked() -> None:
    if not (ROOT / ".git").exists():
        return
    done = subprocess.run(
        ["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 or not done.stdout, "tracked although .gitignore names them"
