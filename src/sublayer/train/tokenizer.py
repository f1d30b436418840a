"""The tokenizer of a study: one that exists, by name or path, or a byte-level BPE trained on the training split.

It is kept as an ordinary Hugging Face fast tokenizer folder (`tokenizer.json` and its configuration), so that the
trained models can be used without this package's help.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .documents import Document
from .errors import TrainError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, MASK, END = "<pad>", "<unk>", "<mask>", "<eos>"
TRAIN_CHARACTERS = 200_000_000  # of the training split that a tokenizer is trained on, from its start
_ALONE = re.compile(r"(?<=\S)\n(?=\S)")


@dataclass(frozen=True)
class Vocabulary:
    """What the data and the model need to know of a tokenizer (ids in `[0, size)`)."""

    size: int
    special: tuple[int, ...]  # ids that are never masked and never drawn as random replacements
    end: int  # closes each document
    mask: int | None
    pad: int | None
    bos: int | None


def train(documents: Iterable[Document], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE and store it as a fast tokenizer in `folder`. The same texts give the same file.

    Source: Sennrich et al. 2016 (BPE, 1508.07909) over bytes as in GPT-2 (Radford et al. 2019).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, UNKNOWN, AddedToken(MASK, lstrip=True), END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # so that no text is out of vocabulary
        show_progress=False,
    )
    tokenizer.train_from_iterator(_some(documents), trainer)
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, mask_token=MASK, eos_token=END, bos_token=END
    ).save_pretrained(folder)


def _some(documents: Iterable[Document]) -> Iterator[str]:
    left = TRAIN_CHARACTERS
    for document in documents:
        yield document.text[:left]
        left -= len(document.text)
        if left <= 0:
            return


def load(name: str | Path) -> PreTrainedTokenizerFast:
    """A fast tokenizer by its name on the Hub or from a folder.

    Raises:
        TrainError: it is not there, or is not a fast one.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except Exception as error:  # the library and the network raise very many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainError(f"cannot load the tokenizer {str(name)!r}: {lines[0]}") from error
    if not found.is_fast:
        raise TrainError(
            f"the tokenizer {str(name)!r} has no fast version (tokenizer.json), which is needed; give another"
        )
    return found


def vocabulary(tokenizer: Any, objective: str) -> Vocabulary:
    """Sizes and special ids of a fast tokenizer, checked for what the objective needs."""
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    end = next((i for i in ends if i is not None), None)
    if end is None:
        raise TrainError("the tokenizer has no end-of-text or separator token, and documents need one; set eos_token")
    if objective == "mlm" and tokenizer.mask_token_id is None:
        raise TrainError("objective mlm needs a tokenizer with a mask token; give another, or use --objective clm")
    return Vocabulary(
        size=len(tokenizer),
        special=tuple(sorted(tokenizer.all_special_ids)),
        end=end,
        mask=tokenizer.mask_token_id,
        pad=tokenizer.pad_token_id,
        bos=tokenizer.bos_token_id,
    )


def encode(tokenizer: Any, texts: list[str], end: int) -> list[list[int]]:
    """Ids of each text, without the tokenizer's own frame, closed by `end`.

    A special token that is spelt out in a text is encoded as ordinary text: no text can end its own document.
    """
    # the backend is used directly: it neither warns of long texts nor builds masks that packing throws away
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        return [[*found.ids, end] for found in backend.encode_batch_fast(texts, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def parts(text: str, most: int) -> Iterator[str]:
    """A text in parts that can be encoded one by one, of about `most` characters each.

    It is cut where a line ends between two characters that are no spaces. There byte-level BPE with GPT-2's pattern,
    which is what `train` makes, and what splits at spaces give the ids of the whole text; a tokenizer that puts
    something before each text puts it before each part. A text without such a place stays whole.
    """
    begin = 0
    while len(text) - begin > most:
        place = _ALONE.search(text, begin + most)
        if place is None:
            break
        yield text[begin : place.end()]
        begin = place.end()
    yield text[begin:] if begin else text


def identity(folder_or_name: str) -> str:
    """What tells two tokenizers apart in a cache key: the bytes of a local one, the name of one on the Hub."""
    folder = Path(folder_or_name).expanduser()
    if not folder.is_dir():
        return f"name:{folder_or_name}"
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".json", ".txt", ".model"):
            total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return f"bytes:{total.hexdigest()}"
