"""Where progress goes by default: standard error as it is when something is written, not as it was at import."""

import io
import sys
from typing import IO, cast


class _Now(io.TextIOBase):
    """`sys.stderr`, looked up at each use: a notebook, a test or a daemon may have put another in its place."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()


STDERR = cast(IO[str], _Now())
