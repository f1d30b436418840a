"""Documentation in the standard library's own sources: text that every machine with Python has."""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import final

from .documents import Document, Source
from .errors import TrainError

_TESTS = {"test", "tests", "idle_test", "idlelib", "turtledemo"}
_SKIP = _TESTS | {"site-packages", "dist-packages", "pydoc_data", "__pycache__"}


@final
class StandardLibrary(Source):
    """Documentation text of the running Python. The same interpreter gives the same documents everywhere.

    Args:
        root: folder of the standard library; by default that of the running interpreter.
    """

    def __init__(self, root: Path | None = None) -> None:
        super().__init__("docs")
        self.root = Path(root or sysconfig.get_paths()["stdlib"])
        self._files = sorted(self._find(), key=lambda path: path.relative_to(self.root).as_posix())
        self._found: list[Document] = []  # parsing takes two seconds and the text two megabytes
        if not self._files:
            raise TrainError(f"data 'docs' reads the standard library's sources, and {self.root} has none; give a path")

    def _find(self) -> Iterator[Path]:
        for folder, below, names in os.walk(self.root):
            below[:] = [name for name in below if name not in _SKIP]
            # generated per machine, and the only module without prose that differs between installations
            yield from (Path(folder, n) for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata"))
        topics = self.root / "pydoc_data" / "topics.py"
        if topics.is_file():
            yield topics

    def fingerprint(self) -> str:
        """Hash of the names and bytes of all source files."""
        total = hashlib.sha256()
        for path in self._files:
            total.update(path.relative_to(self.root).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    def raw(self) -> Iterator[Document]:
        """One document a module and one a topic, in the order of their names."""
        self._found = self._found or list(self._read())
        return iter(self._found)

    def _read(self) -> Iterator[Document]:
        seen: set[str] = set()  # a docstring that several modules share is kept once
        for path in self._files:
            name = path.relative_to(self.root).as_posix()
            if name == "pydoc_data/topics.py":
                yield from (Document(key, text) for key, text in sorted(_topics(path).items()))
            else:
                yield Document(name, "\n\n".join(_docstrings(path, seen)))


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():  # old modules have invalid escapes in their strings
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a file for another Python, as in lib2to3's data
            return ast.Module([], [])


def _docstrings(path: Path, seen: set[str]) -> Iterator[str]:
    """Docstrings of a module and of its classes and functions, in the order of the file, new ones only."""
    queue: list[ast.AST] = [_parse(path)]
    while queue:
        node = queue.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and text not in seen:
                seen.add(text)
                yield text
        if not isinstance(node, ast.expr):  # expressions hold no definitions
            queue.extend(reversed(list(ast.iter_child_nodes(node))))


def _topics(path: Path) -> dict[str, str]:
    """The texts behind `help("if")`: the one dictionary literal of `pydoc_data/topics.py`."""
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return {f"pydoc_data/{key}": text for key, text in ast.literal_eval(node.value).items()}
    return {}
