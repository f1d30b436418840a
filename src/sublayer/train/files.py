"""Text from files and from the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, final

from .documents import Document, Source
from .errors import TrainError

SUFFIXES = (".txt", ".jsonl", ".parquet")
END = "<|endoftext|>"
LARGE = 1 << 24  # bytes from which a file that is one document is read in pieces
_HEADING = re.compile(r" = [^=\s][^=]* = \s*")  # WikiText's level one; level two is " = = Title = = "


@final
class Files(Source):
    """A text file or a folder of them, read in the order of their names."""

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self.root = Path(spec).expanduser()
        kinds = ", ".join(SUFFIXES)
        if self.root.is_dir():
            found = (path for path in self.root.rglob("*") if path.is_file() and path.suffix.lower() in SUFFIXES)
            shown = (path for path in found if not any(p.startswith(".") for p in path.relative_to(self.root).parts))
            self._files = sorted(shown, key=lambda path: path.relative_to(self.root).as_posix())
            if not self._files:
                raise TrainError(f"the folder {spec!r} has no {kinds} files; give a folder or a file that has")
        elif self.root.is_file():
            if self.root.suffix.lower() not in SUFFIXES:
                raise TrainError(f"{spec!r} is none of {kinds}; rename or convert it")
            self._files = [self.root]
        else:
            raise TrainError(f"data is 'docs', a path or 'hub:NAME', and there is no file or folder {spec!r}")

    def fingerprint(self) -> str:
        """Hash of the bytes of all files, in their order."""
        total = hashlib.sha256()
        for path in self._files:
            total.update(path.suffix.lower().encode() + b"\0")
            with _readable(path), open(path, "rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()

    def raw(self) -> Iterator[Document]:
        """The documents of each file in turn."""
        readers: dict[str, Callable[[Path, str], Iterator[Document]]]
        readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
        for path in self._files:
            with _readable(path):
                yield from readers[path.suffix.lower()](path, self._name(path))

    def lone(self) -> tuple[str, Iterator[str]] | None:
        """The document of a single `.txt` file that has one, and enough text to be read in pieces."""
        return self._lone and (self._lone[0], _one(self._files[0], self._lone[1]))

    @functools.cached_property
    def _lone(self) -> tuple[str, int] | None:
        """Name and number of that document."""
        path = self._files[0]
        if len(self._files) > 1 or path.suffix.lower() != ".txt":
            return None
        with _readable(path):
            return _only(path, self._name(path)) if path.stat().st_size > LARGE else None

    def _name(self, path: Path) -> str:
        return path.name if path == self.root else path.relative_to(self.root).as_posix()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainError(f"cannot read {path}: {error.strerror or error}") from None


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file; a byte that is not UTF-8 is an error with its place."""
    at = 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise TrainError(
                    f"{path}: byte {at + error.start} (0x{line[error.start]:02x}, line {number}) is not UTF-8; "
                    f"convert the file, for example with iconv -t utf-8"
                ) from None
            at += len(line)


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, each with the number of its document; a line with an end marker is two."""
    count = 0
    for line in _lines(path):
        if END in line:
            before, _, after = line.partition(END)
            yield count, before
            count += 1
            yield count, after
        else:
            count += _HEADING.fullmatch(line) is not None
            yield count, line


def _read_text(path: Path, name: str) -> Iterator[Document]:
    held: list[str] = []
    number = 0
    for count, text in _numbered(path):
        if count != number:
            yield Document(f"{name}#{number}", "".join(held))
            held, number = [], count
        held.append(text)
    yield Document(f"{name}#{number}" if number else name, "".join(held))


def _only(path: Path, name: str) -> tuple[str, int] | None:
    """Name and number of the one document of a file that is not blank; None where there are several or none."""
    found: int | None = None
    count = 0
    for count, text in _numbered(path):
        if count != found and text.strip():
            if found is not None:
                return None
            found = count
    return None if found is None else (f"{name}#{found}" if count else name, found)


def _one(path: Path, number: int) -> Iterator[str]:
    """The lines of one document of a file."""
    with _readable(path):
        yield from (text.replace("\r\n", "\n") for count, text in _numbered(path) if count == number)


def _read_jsonl(path: Path, name: str) -> Iterator[Document]:
    def texts() -> Iterator[str]:
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, lists without end
                why = getattr(error, "msg", None) or " ".join(str(error).split())[:120]
                raise TrainError(f"{path}, line {number} is not JSON ({why}); write one object a line") from None
            text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str):
                has = f"fields {', '.join(map(repr, record))}" if isinstance(record, dict) else type(record).__name__
                raise TrainError(f'{path}, line {number} needs a field "text" that holds text; it has {has}')
            yield text

    return _records(texts(), name)


def _read_parquet(path: Path, name: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TrainError(f"{path}: reading .parquet needs pyarrow; pip install pyarrow, or convert to .jsonl") from None
    try:
        table = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)  # else a group of rows is read as a whole
    except pyarrow.ArrowInvalid as error:
        raise TrainError(f"{path} is not a Parquet file: {error}") from None
    if "text" not in table.schema_arrow.names:
        raise TrainError(f'{path} needs a column "text"; it has {", ".join(map(repr, table.schema_arrow.names))}')

    def texts() -> Iterator[Any]:
        with table:
            batches = table.iter_batches(1024, columns=["text"])
            while True:
                try:
                    rows = next(batches).column(0).to_pylist()
                except StopIteration:
                    return
                except (pyarrow.ArrowException, UnicodeDecodeError) as error:
                    raise TrainError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
                yield from rows

    return _records(texts(), name, str(path))


def _records(texts: Iterable[Any], name: str, place: str = "") -> Iterator[Document]:
    """Documents of a column of texts. Records that are WikiText's lines are joined into its articles again."""
    rows = iter(texts)
    head = list(itertools.islice(rows, 1000))
    joined = any(isinstance(row, str) and _HEADING.fullmatch(row) for row in head)
    held: list[str] = []
    count = 0
    for number, row in enumerate(itertools.chain(head, rows)):
        if row is None:
            continue
        if not isinstance(row, str):
            raise TrainError(f'{place or name}: "text" must hold text, row {number} has {type(row).__name__}')
        if not joined:
            yield Document(f"{name}#{number}", row)
            continue
        if _HEADING.fullmatch(row) and held:
            yield Document(f"{name}#{count}", "".join(held))
            held, count = [], count + 1
        held.append(row if row.endswith("\n") else row + "\n")
    if held:
        yield Document(f"{name}#{count}", "".join(held))


@final
class Hub(Source):
    """The training split of a data set of the Hub, through `datasets` (which is imported only here)."""

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        _, name, *config = spec.split(":")
        if not name or len(config) > 1:
            raise TrainError(f"a data set of the Hub is hub:NAME or hub:NAME:CONFIG, got {spec!r}")
        self._name, self._config = name, (config[0] if config else None)
        self._loaded: Any = None

    def _load(self) -> Any:
        if self._loaded is None:
            try:
                import datasets
            except ImportError:
                raise TrainError(f"data {self.spec!r} needs the datasets package; pip install datasets") from None
            try:
                self._loaded = datasets.load_dataset(self._name, self._config, split="train")
            except Exception as error:  # the library and the network raise very many kinds
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise TrainError(f"cannot load {self.spec!r} from the Hub: {lines[0]}") from error
            if "text" not in self._loaded.column_names:
                columns = ", ".join(map(repr, self._loaded.column_names))
                raise TrainError(f'data {self.spec!r} needs a column "text"; it has {columns}')
        return self._loaded

    def fingerprint(self) -> str:
        """The fingerprint that `datasets` gives the data."""
        return hashlib.sha256(f"{self.spec}\0{self._load()._fingerprint}".encode()).hexdigest()

    def raw(self) -> Iterator[Document]:
        """The training split's documents."""
        return _records((row["text"] for row in self._load()), self._name)
