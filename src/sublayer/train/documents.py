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
"""

from __future__ import annotations

import hashlib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from .errors import TrainError

PIECE = 2000  # characters
HELD_OUT, HELD_OUT_MOST = 0.1, 4_000_000  # share of the characters that is evaluation text, and its limit


class Document(NamedTuple):
    """A piece of text that is never mixed with another: `name` says where it was found."""

    name: str
    text: str

    def digest(self) -> bytes:
        """Hash of the text, 16 bytes."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).digest()[:16]


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

    def documents(self) -> Iterator[Document]:
        """The documents, none of them blank, line ends as `\\n`, and at least two of them."""
        kept = (Document(d.name, d.text.replace("\r\n", "\n")) for d in self.raw() if d.text.strip())
        first_two = list(itertools.islice(kept, 2))
        if not first_two:
            raise TrainError(f"data {self.spec!r} holds no text: every document is empty; give files with text in them")
        if len(first_two) == 1:
            first_two = list(_pieces(first_two[0]))
            if len(first_two) == 1:
                raise TrainError(
                    f"data {self.spec!r} is one document of {len(first_two[0].text)} characters, and whole documents "
                    f"are held out for evaluation; give at least two, or one with blank lines and {PIECE} characters"
                )
        return itertools.chain(first_two, kept)


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


def _pieces(document: Document) -> Iterator[Document]:
    """One long document cut at blank lines."""
    held: list[str] = []
    count = 0
    for paragraph in re.split(r"\n\s*\n", document.text):
        held.append(paragraph)
        if sum(map(len, held)) >= PIECE:
            yield Document(f"{document.name}#{count}", "\n\n".join(held))
            held, count = [], count + 1
    if held:
        yield Document(f"{document.name}#{count}", "\n\n".join(held))


def held_out(source: Source) -> frozenset[bytes]:
    """Digests of the documents that are evaluation text: whole documents, about `HELD_OUT` of all characters.

    Documents are taken in the order of their digests, so the choice depends on nothing but the texts, equal texts fall
    on the same side, and a corpus that grows keeps nearly all of its split. One that would make the held-out text twice
    as large as wanted is passed over.

    Raises:
        TrainError: all documents have the same text.
    """
    sizes: dict[bytes, int] = {}
    for document in source.documents():
        digest = document.digest()
        sizes[digest] = sizes.get(digest, 0) + len(document.text)
    if len(sizes) < 2:
        raise TrainError(f"every document of data {source.spec!r} has the same text; evaluation needs a different one")
    goal = min(HELD_OUT * sum(sizes.values()), HELD_OUT_MOST)
    chosen: set[bytes] = set()
    size = 0
    for digest in sorted(sizes):
        if size >= goal:
            break
        if size + sizes[digest] <= 2 * goal:
            chosen.add(digest)
            size += sizes[digest]
    return frozenset(chosen or {min(sizes, key=lambda digest: (sizes[digest], digest))})
