"""Tokenised text on disk: made once for a study, read by each of its runs as memory-mapped arrays.

An entry is a folder `<cache>/<key>`; the key is a hash of the source's bytes, the tokenizer and this code's version. It
holds `train.npy` and `eval.npy` (token ids, one document after another), `train.starts.npy` and `eval.starts.npy`
(where each document begins; one more than documents), `tokenizer/`, and `entry.json` with the sha256 of each file. An
entry is written under another name and moved into place, so that it is whole or absent; of two processes that make the
same entry at once, one wins and the other uses the winner's. What does not match its hashes is moved aside and made
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublayer import signed

from . import tokenizer as tokenizers
from .documents import Document, Source, held_out, open_source
from .errors import TrainError
from .spec import TrainSpec
from .tokenizer import Vocabulary

VERSION = 1  # of this module, `documents` and `tokenizer` together: raise it when the same source gives other ids
ENTRY = "entry.json"
SPLITS = ("train", "eval")
_TRIES = 5  # at making an entry, where other processes set it aside meanwhile
_CHUNK, _CHUNK_SIZE = 512, 4_000_000  # documents encoded at once, and their characters
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """The documents of one split: `ids` of shape [tokens], document `i` at `ids[starts[i]:starts[i + 1]]`."""

    ids: NDArray[Any]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Tokenised text that is ready to be packed. `facts` goes into a study's results (`data`)."""

    folder: Path
    train: Tokens
    eval: Tokens
    vocabulary: Vocabulary
    facts: dict[str, Any]

    @property
    def tokenizer(self) -> Path:
        """Folder of the fast tokenizer."""
        return self.folder / "tokenizer"


def default_folder() -> Path:
    """`$SUBLAYER_CACHE`, or `sublayer` in the user's cache folder."""
    own = os.environ.get("SUBLAYER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own).expanduser() if own else Path(base) / "sublayer"


def prepare(spec: TrainSpec) -> Corpus:
    """Tokenised text for a run: from the cache when it is there, else made and kept.

    Raises:
        TrainError: the data or the tokenizer cannot be used; the message says what to do.
    """
    source = open_source(spec.data)
    chosen = f"bpe:{spec.vocab_size}" if spec.tokenizer is None else tokenizers.identity(spec.tokenizer)
    content = source.fingerprint()
    key = hashlib.sha256(json.dumps([VERSION, content, chosen]).encode()).hexdigest()[:24]
    cache = Path(spec.cache).expanduser() if spec.cache else default_folder()
    folder = cache / key
    corpus = _read(folder, spec)
    tries = 0
    while corpus is None and tries < _TRIES:  # what one process made, another may just have found damaged before
        tries += 1
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        work = Path(tempfile.mkdtemp(prefix=f"{key}.making-", dir=cache))
        try:
            _make(source, content, spec, work)
            _move(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        corpus = _read(folder, spec)
    if corpus is None:
        raise TrainError(f"the data cache {folder} cannot be read back; check the disk, or set another")
    if len(corpus.train.ids) < spec.seq or len(corpus.eval.ids) < spec.seq:
        raise TrainError(
            f"data {spec.data!r} has {len(corpus.train.ids)} training and {len(corpus.eval.ids)} held-out tokens, and "
            f"a row needs {spec.seq} of each; give more text or a smaller seq"
        )
    return corpus


def _sweep(cache: Path) -> None:
    """Remove what processes that were killed while making an entry left behind, once it is a day old."""
    for left in cache.glob("*.making-*"):
        with contextlib.suppress(OSError):  # another process may be sweeping too
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left)


def _move(work: Path, folder: Path) -> None:
    try:
        work.rename(folder)
    except OSError:
        if not (folder / ENTRY).is_file():  # not another process that was faster
            raise


# -- making ----------------------------------------------------------------------------------------------------------


def _make(source: Source, content: str, spec: TrainSpec, work: Path) -> None:
    aside = held_out(source)
    if spec.tokenizer is None:
        training = (document for document in source.documents() if document.digest() not in aside)
        tokenizers.train(training, spec.vocab_size, work / "tokenizer")
        tokenizer = tokenizers.load(work / "tokenizer")
    else:
        tokenizer = tokenizers.load(spec.tokenizer)
        tokenizer.save_pretrained(work / "tokenizer")
    # any objective may read this entry, so what only one of them needs is checked when the entry is read
    words = tokenizers.vocabulary(tokenizer, "clm")
    counts = _encode(source, aside, tokenizer, words, work)
    files = sorted(path for path in work.rglob("*") if path.is_file())
    facts: dict[str, Any] = {
        "spec": spec.data,
        "sha256": content,
        "documents": counts["train"][0] + counts["eval"][0],
        "train_tokens": counts["train"][1],
        "eval_tokens": counts["eval"][1],
        "eval_documents": counts["eval"][0],
        "vocab_size": words.size,
        "tokenizer": spec.tokenizer or f"byte-level BPE trained on the training split ({words.size})",
        "tokenizer_sha256": _hash(work / "tokenizer" / "tokenizer.json"),
    }
    entry = {
        "version": VERSION,
        "facts": facts,
        "vocabulary": asdict(words),
        "files": {path.relative_to(work).as_posix(): _hash(path) for path in files},
    }
    (work / ENTRY).write_text(_written(entry), encoding="utf-8")


def _encode(
    source: Source, aside: frozenset[bytes], tokenizer: Any, words: Vocabulary, work: Path
) -> dict[str, tuple[int, int]]:
    """Write the ids of both splits; documents and tokens of each."""
    kind = np.dtype(np.uint16 if words.size <= 1 << 16 else np.uint32)
    with contextlib.ExitStack() as files:

        def array(name: str, of: Any) -> _Array:
            return files.enter_context(contextlib.closing(_Array(work / f"{name}.npy", np.dtype(of))))

        ids = {split: array(split, kind) for split in SPLITS}
        starts = {split: array(f"{split}.starts", np.int64) for split in SPLITS}
        for split in SPLITS:
            starts[split].extend([0])
        for chunk in _chunks(_texts(source.documents(), aside)):
            encoded = tokenizers.encode(tokenizer, [text.text for text in chunk], words.end)
            for text, found in zip(chunk, encoded, strict=True):
                ids[text.split].extend(found if text.closes else found[:-1])
                if text.closes:
                    starts[text.split].extend([ids[text.split].length])
        return {split: (starts[split].length - 1, ids[split].length) for split in SPLITS}


class _Array:
    """A one-dimensional `.npy` file that grows, with the bytes that `numpy.save` writes."""

    def __init__(self, path: Path, kind: np.dtype[Any]) -> None:
        self._stream: IO[bytes] = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._kind = kind
        self.length = 0
        self._begin = self._header()

    def extend(self, numbers: list[int]) -> None:
        """Write numbers at the end."""
        self._stream.write(np.asarray(numbers, dtype=self._kind).tobytes())
        self.length += len(numbers)

    def close(self) -> None:
        """Write the length in front, where numpy leaves room for it."""
        self._stream.seek(0)
        if self._header() != self._begin:
            raise RuntimeError("this numpy leaves no room for the length of an array")
        self._stream.close()

    def _header(self) -> int:
        """Bytes written."""
        before = self._stream.tell()
        header = {"descr": np.lib.format.dtype_to_descr(self._kind), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)
        return self._stream.tell() - before


class _Text(NamedTuple):
    """What is encoded at once of a document: all of it, or a part of a large one; the last one closes it."""

    split: str
    text: str
    closes: bool


def _texts(documents: Iterable[Document], aside: frozenset[bytes]) -> Iterator[_Text]:
    for document in documents:
        split = "eval" if document.digest() in aside else "train"
        held: str | None = None
        for part in tokenizers.parts(document.text, _CHUNK_SIZE):
            if held is not None:
                yield _Text(split, held, False)
            held = part
        assert held is not None
        yield _Text(split, held, True)


def _chunks(texts: Iterable[_Text]) -> Iterator[list[_Text]]:
    """Texts in groups that are worth encoding in parallel and still small in memory."""
    held: list[_Text] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text.text)
        if len(held) >= _CHUNK or size >= _CHUNK_SIZE:
            yield held
            held, size = [], 0
    if held:
        yield held


# -- reading ---------------------------------------------------------------------------------------------------------


def _read(folder: Path, spec: TrainSpec) -> Corpus | None:
    """The entry, or None when there is none or it was damaged (then it is out of the way)."""
    if not folder.is_dir():
        return None
    entry, problem = _entry(folder)
    if problem is not None:
        _set_aside(folder, problem)
        return None
    words = Vocabulary(**{**entry["vocabulary"], "special": tuple(entry["vocabulary"]["special"])})
    if spec.objective == "mlm" and words.mask is None:
        raise TrainError(f"objective mlm needs a tokenizer with a mask token, and {spec.tokenizer!r} has none; use clm")
    # where the text was found and under which name the tokenizer was asked for belong to this run, not to the entry
    facts = {**entry["facts"], "spec": spec.data}
    names = [folder / f"{split}{kind}.npy" for split in SPLITS for kind in ("", ".starts")]
    try:
        arrays = [np.load(name, mmap_mode="r") for name in names]
    except FileNotFoundError:  # another process has just set it aside
        return None
    return Corpus(folder, Tokens(*arrays[:2]), Tokens(*arrays[2:]), words, facts)


def _entry(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What an entry says of itself, and what is wrong with it."""
    try:
        text = (folder / ENTRY).read_text(encoding="utf-8")
        entry = json.loads(text)
        if text != _written(entry):
            return {}, f"{ENTRY} does not match its own hash"
        for name, expected in entry["files"].items():
            if _hash(folder / name) != expected:
                return {}, f"{name} does not match its hash"
        more = signed.added(folder, [*entry["files"], ENTRY])  # a tokenizer reads what lies in its folder
        if more:
            return {}, f"{more[0]} was added"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"it cannot be read ({error})"
    return dict(entry), None


def _set_aside(folder: Path, problem: str) -> None:
    """Move a damaged entry out of the way. If another process has made it anew since we looked, it stays."""
    place = Path(tempfile.mkdtemp(prefix=f"{folder.name}.damaged-", dir=folder.parent))
    aside = place / folder.name
    try:
        folder.rename(aside)
    except FileNotFoundError:  # another process was faster
        place.rmdir()
        return
    if _entry(aside)[1] is None:
        with contextlib.suppress(OSError):  # a third one may have made it once more
            aside.rename(folder)
        shutil.rmtree(place, ignore_errors=True)
        return
    _log.warning("the data cache entry %s is damaged (%s): moved to %s, making it again", folder, problem, aside)


def _hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _written(entry: dict[str, Any]) -> str:
    """The entry with a hash over all its other fields, as it is written."""
    body = {key: value for key, value in entry.items() if key != "sha256"}
    signature = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": signature}, indent=2)
