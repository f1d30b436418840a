"""Where text comes from: a source is a sequence of documents with a fingerprint of the bytes behind it.

Three kinds, named by one string:

- `docs`: English documentation found in the running Python's own standard library. Docstrings are read from the
  source files with `ast`; nothing is imported. One document a module, and one a topic of `pydoc_data.topics`.
- a path: a `.txt`, `.jsonl` (field `text`) or `.parquet` (column `text`) file, or a folder of these.
- `hub:NAME` or `hub:NAME:CONFIG`: the training split of a data set of the Hugging Face Hub, column `text`.

What is one document: a record of `.jsonl`, `.parquet` and the Hub, unless the records are the lines of WikiText, which
are put together again at its level-one headings (` = Title = `). A `.txt` file is split at such headings and at
`<|endoftext|>`, and is one document where it has neither. A source that comes to a single document is cut at
blank lines into pieces of at least `PIECE` characters, because whole documents are held out for evaluation.

Sources are read as streams: what is in memory is a document or a few, whatever the size of the source. A `.txt` file
that is one document is cut as it is read.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .errors import TrainError

PIECE = 2000  # characters
HELD_OUT, HELD_OUT_MOST = 0.1, 4_000_000  # share of the characters that is evaluation text, and its limit
_SLICE = 1 << 20  # characters hashed at once
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


class Document(NamedTuple):
    """A piece of text that is never mixed with another: `name` says where it was found."""

    name: str
    text: str

    def digest(self) -> bytes:
        """Hash of the text, 16 bytes."""
        total = hashlib.sha256()
        for at in range(0, len(self.text), _SLICE):  # the bytes of a large text are never there all at once
            total.update(self.text[at : at + _SLICE].encode("utf-8", "surrogatepass"))
        return total.digest()[:16]


class Source(ABC):
    """A sequence of documents that can be read again and again."""

    def __init__(self, spec: str) -> None:
        self.spec = spec

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the bytes that the documents are made from (not of where they lie)."""

    @abstractmethod
    def raw(self) -> Iterator[Document]:
        """The documents as they are stored; some may be blank."""

    def lone(self) -> tuple[str, Iterator[str]] | None:
        """Name and text, piece by piece, of a document that is known to be the only one, so that it need not be held;
        None where that is not known."""
        return None

    def documents(self) -> Iterator[Document]:
        """The documents, none of them blank, line ends as `\\n`, and at least two of them."""
        lone = self.lone()
        if lone is not None:
            return self._cut(*lone)
        kept = (Document(d.name, d.text.replace("\r\n", "\n")) for d in self.raw() if d.text.strip())
        first_two = list(itertools.islice(kept, 2))
        if not first_two:
            raise TrainError(f"data {self.spec!r} holds no text: every document is empty; give files with text in them")
        if len(first_two) == 1:
            return self._cut(first_two[0].name, [first_two[0].text])
        return itertools.chain(first_two, kept)

    def _cut(self, name: str, text: Iterable[str]) -> Iterator[Document]:
        """The only document in pieces."""
        pieces = _pieces(name, text)
        first_two = list(itertools.islice(pieces, 2))
        if len(first_two) == 1:
            raise TrainError(
                f"data {self.spec!r} is one document of {len(first_two[0].text)} characters, and whole documents "
                f"are held out for evaluation; give at least two, or one with blank lines and {PIECE} characters"
            )
        return itertools.chain(first_two, pieces)


def open_source(spec: str) -> Source:
    """The source that a `--data` value names.

    Raises:
        TrainError: nothing is there, or it is of no known kind.
    """
    # each kind is imported where it is used: they are made of what this module defines
    if spec == "docs":
        from .library import StandardLibrary

        return StandardLibrary()
    from .files import Files, Hub

    if spec.startswith("hub:"):
        return Hub(spec)
    return Files(spec)


def _pieces(name: str, text: Iterable[str]) -> Iterator[Document]:
    """One long document, given in parts that end where lines end, cut at blank lines."""
    held: list[str] = []
    count = size = 0
    for paragraph in _paragraphs(text):
        held.append(paragraph)
        size += len(paragraph)
        if size >= PIECE:
            yield Document(f"{name}#{count}", "\n\n".join(held))
            held, size, count = [], 0, count + 1
    if held:
        yield Document(f"{name}#{count}", "\n\n".join(held))


def _paragraphs(text: Iterable[str]) -> Iterator[str]:
    r"""What `re.split(r"\n\s*\n", text)` gives, from parts of the text that end where lines end."""
    held: list[str] = []  # lines of the paragraph
    between = False  # in the blank lines after one
    for line in (match.group() for part in text for match in _LINE.finditer(part)):
        ends = line.endswith("\n")
        if ends and not line.strip() and (between or (held and held[-1].endswith("\n"))):
            if not between:
                yield "".join(held)[:-1]
            held, between = [], True
        else:
            held.append(line)
            between = False
    yield "".join(held)  # empty where the text ends in blank lines, as the last part of a split is


def held_out(source: Source) -> frozenset[bytes]:
    """Digests of the documents that are evaluation text: whole documents, about `HELD_OUT` of all characters.

    Documents are taken in the order of their digests, so the choice depends on nothing but the texts, equal texts fall
    on the same side, and a corpus that grows keeps nearly all of its split. One that would make the held-out text twice
    as large as wanted is passed over.

    Raises:
        TrainError: all documents have the same text.
    """
    most = 2 * HELD_OUT_MOST
    while (found := _choose(source, most)) is None:
        most *= 8
    return found


def _choose(source: Source, most: int) -> frozenset[bytes] | None:
    """The choice, from the first documents in the order of their digests that come to about `most` characters; None
    where those are too few to tell. Their number is bounded, whatever the size of the source."""
    sizes: dict[bytes, int] = {}
    total = fresh = 0
    end: bytes | None = None  # documents from this digest on were left out
    for document in source.documents():
        digest, size = document.digest(), len(document.text)
        total += size
        if end is None or digest < end:
            sizes[digest] = sizes.get(digest, 0) + size
            fresh += size
            if fresh > most:
                sizes, end = _first(sizes, most, end)
                fresh = 0
    if len(sizes) < 2 and end is None:
        raise TrainError(f"every document of data {source.spec!r} has the same text; evaluation needs a different one")
    goal = min(HELD_OUT * total, HELD_OUT_MOST)
    chosen: set[bytes] = set()
    taken = 0
    for digest in sorted(sizes):
        if taken >= goal:
            break
        if taken + sizes[digest] <= 2 * goal:
            chosen.add(digest)
            taken += sizes[digest]
    if end is not None and taken < goal:
        return None
    return frozenset(chosen or {min(sizes, key=lambda digest: (sizes[digest], digest))})


def _first(sizes: dict[bytes, int], most: int, end: bytes | None) -> tuple[dict[bytes, int], bytes | None]:
    """The first documents, and the digest from which on they are left out. Those that may be passed over as too large
    do not count; they are few for the text that they hold."""
    kept: dict[bytes, int] = {}
    held = 0
    for digest in sorted(sizes):
        if held >= most:
            return kept, digest
        kept[digest] = sizes[digest]
        held += sizes[digest] if sizes[digest] <= HELD_OUT_MOST else 0
    return kept, end
