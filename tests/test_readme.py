"""The README's commands do what it says: the quick ones run here, `make readme` runs them all."""

import re
from pathlib import Path

import pytest

import sublayer
from tools import readme

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = list(readme.blocks(PAGE))
CONSOLE = [block for block in BLOCKS if block.language == "console" and not block.slow]


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: f"line {block.line}")
def test_console_block(block: readme.Block, tmp_path: Path) -> None:
    readme.run_console(block, tmp_path)


def test_python_blocks(tmp_path: Path) -> None:
    assert {"python", "output"} <= {block.language for block in BLOCKS if not block.slow}
    readme.run_python([block for block in BLOCKS if not block.slow], tmp_path)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    # "text" is for equations and other things that are no command.
    assert {block.language for block in BLOCKS} <= {"python", "output", "console", "sh", "text"}


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = readme.make_targets(PAGE)
    assert {"demo", "test"} <= named <= targets


def test_check_runs_the_readme_test_command() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    assert re.search(r"\$\(MAKE\).* test$", recipe[1], re.MULTILINE)


def test_files_and_pictures_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not re.match(r"\w+:", target):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_begins_with_a_picture_of_a_block_and_its_line() -> None:
    picture, line = PAGE.find("docs/images/post-norm.svg"), PAGE.find("x = norm(x + attn(x)); x = norm(x + ffn(x))")
    assert -1 < picture < line < PAGE.find("make demo") < PAGE.find("make test")


def test_the_picture_is_what_show_draws() -> None:
    picture = (ROOT / "docs" / "images" / "post-norm.svg").read_text(encoding="utf-8")
    assert picture.strip() == sublayer.parse("post-norm").svg().strip(), "run `make images`"


class TestTheReader:
    """The reader of the README is code as well: it must be able to fail."""

    def test_finds_commands_and_their_output(self) -> None:
        (block,) = readme.blocks("text\n```console\n$ one \\\n  two\nout\n$ three\n```\n")
        assert list(readme.commands(block)) == [("one \\\n  two", "out"), ("three", "")]
        assert (block.line, block.slow) == (2, False)

    def test_reads_marks(self) -> None:
        (block,) = readme.blocks("<!-- slow -->\n```console\n$ one\n```\n")
        assert block.slow
        with pytest.raises(ValueError, match="not 'quick'"):
            list(readme.blocks("<!-- quick -->\n```console\n$ one\n```\n"))

    @pytest.mark.parametrize(
        ("said", "expected", "same"),
        [
            ("a\nb\nc\n", "a\nb\nc", True),
            ("a  \nb\nc\n", "a\n...\nc", True),
            ("a\nc\n", "a\n...\nc", True),
            ("a\nb\n", "a", False),
            ("a.c\n", "abc", False),
            ("anything", "", True),
        ],
    )
    def test_compares_output(self, said: str, expected: str, same: bool) -> None:
        assert readme.agrees(said, expected) is same

    @pytest.mark.parametrize("text", ["$ false\n", "$ echo one\ntwo\n"])
    def test_a_wrong_command_is_told(self, text: str, tmp_path: Path) -> None:
        (block,) = readme.blocks(f"```console\n{text}```\n")
        with pytest.raises(readme.Mismatch, match="README, line 1"):
            readme.run_console(block, tmp_path)

    def test_a_wrong_program_is_told_with_its_line(self, tmp_path: Path) -> None:
        group = list(readme.blocks("one\n\n```python\na = 1\nassert a == 2\n```\n"))
        with pytest.raises(readme.Mismatch, match="line 5"):
            readme.run_python(group, tmp_path)

    def test_wrong_output_of_a_program_is_told(self, tmp_path: Path) -> None:
        group = list(readme.blocks("```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n"))
        with pytest.raises(readme.Mismatch, match="line 5 shows"):
            readme.run_python(group, tmp_path)
