"""Progress goes to the standard error of the moment."""

import io

import pytest

from sublayer.streams import STDERR


def test_standard_error_is_looked_up_when_something_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("one", "two"):
        now = io.StringIO()
        monkeypatch.setattr("sys.stderr", now)
        print(text, file=STDERR, flush=True)
        assert now.getvalue() == f"{text}\n"
        assert not STDERR.isatty()
        now.close()
