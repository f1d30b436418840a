"""The made-up study that the tests of the report share, and its page."""

from pathlib import Path

import pytest

from sublayer import report
from tests.report.made_up import Results, build


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """Four designs, two seeds; one run diverged, one was not measured, one design has layer ranges."""
    folder = tmp_path_factory.mktemp("study")
    return build(folder), folder


@pytest.fixture(scope="session")
def page(study: tuple[Results, Path]) -> Path:
    """The page of the made-up study."""
    results, folder = study
    out = folder / "report.html"
    report.write(results, folder, out)
    return out
