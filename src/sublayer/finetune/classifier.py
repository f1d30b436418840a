"""From a checkpoint to a model with a fresh head, and its tokenizer."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sublayer.hf import FAMILIES, CheckpointError, Kept, load
from sublayer.hf.convert import rewire, tokenizer_of, wanted
from sublayer.hf.schema import quiet
from sublayer.model import SublayerConfig, SublayerForSequenceClassification, SublayerPreTrainedModel

from .errors import FinetuneError
from .spec import FinetuneSpec
from .tasks import Task

_TRANSFORM = "classifier_transform"
# What a checkpoint's function is made of: weights, settings, words.
_PATTERNS = ("*.safetensors", "*.json", "vocab.txt", "merges.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Classifier:
    """A model that is ready to be trained.

    Attributes:
        model: on the CPU, float32.
        tokenizer: a fast tokenizer that can pad.
        frame: how a text or a pair is put into a row, in words.
        checkpoint: facts for the records: source, sha256, designs, parameters.
        head: facts for the records: pooling, which tensors are fresh and which came with the checkpoint.
        remarks: for the log.
    """

    model: SublayerForSequenceClassification
    tokenizer: Any
    frame: str
    checkpoint: dict[str, Any]
    head: dict[str, Any]
    remarks: list[str]


def build(spec: FinetuneSpec, task: Task) -> Classifier:
    """The model of a run: the checkpoint below a head that is drawn from the run's seed.

    The head is the config's (`classifier_*`): BERT's has a projection before the labels, and a checkpoint that carries
    a trained one (BERT's pooler) keeps it unless `spec.fresh_pooler`. Everything else of the head is drawn from (seed,
    name), so two checkpoints start from the same head.

    Raises:
        CheckpointError, DesignError, ConvertError: the checkpoint cannot be read, or not be wired so.
        FinetuneError: it has no tokenizer, or one that cannot part two texts.
    """
    with quiet(), _told_by_us():
        base = load(spec.checkpoint, head="none", dtype=torch.float32, attn_implementation=spec.attn_implementation)
    folder = base.loaded_from
    assert folder is not None, "a folder or a Hub id has one"
    kept, before = dict(base.kept_aside), base.config.wiring
    model_type = (base.config.source_checkpoint or {}).get("model_type", "")
    after = before if spec.to is None else wanted(spec.to, before)
    remarks = [f"kept aside by the loader: {name} ({one.reason})" for name, one in kept.items()]
    if after != before:
        conversion = rewire(base, after, consume=True)
        remarks.append(f"the wiring was changed:\n{conversion}")
        base = conversion.model
    config = _config(base.config, spec, task)
    model = SublayerForSequenceClassification(config)
    model.base_model.load_state_dict(base.state_dict())
    taken = {} if spec.fresh_pooler or not config.classifier_dense else _pooler(model_type, kept)
    fresh = [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]
    with torch.no_grad():
        for name, tensor in taken.items():
            model.get_parameter(name).copy_(tensor)
    tokenizer, frame = _tokenizer(folder, str(spec.checkpoint), config.vocab_size)
    return Classifier(
        model,
        tokenizer,
        frame,
        {
            "source": str(spec.checkpoint),
            "sha256": checkpoint_sha256(folder),
            "design": str(before),
            "design_trained": str(after),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        {
            "pooling": config.classifier_reads or ("last" if config.left_to_right else "first"),
            "fresh": [name for name in fresh if name not in taken],
            "from_checkpoint": sorted(taken),
        },
        remarks,
    )


@contextlib.contextmanager
def _told_by_us() -> Iterator[None]:
    """Without the loader's remark on what is kept aside: most of it is used here, and the log says the rest."""
    logger = logging.getLogger("sublayer.hf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def checkpoint_sha256(folder: Path) -> str:
    """Hash of a checkpoint's files: names and bytes of weights, configuration and tokenizer."""
    found: dict[str, str] = {}
    for path in sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)}):
        with open(path, "rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def weights_sha256(model: SublayerPreTrainedModel) -> str:
    """Hash of all parameters: names, shapes and bytes."""
    total = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        value = parameter.detach().cpu()
        total.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def longest_row(classifier: Classifier) -> int | None:
    """How many tokens a row may have, by the table of positions and by the tokenizer; None: as many as one likes."""
    config = classifier.model.config
    limits = [config.max_position_embeddings] if config.position_embedding == "learned" else []
    if classifier.tokenizer.model_max_length < 1 << 31:  # transformers writes a huge number for "not known"
        limits.append(int(classifier.tokenizer.model_max_length))
    return min(limits, default=None)


def _config(old: SublayerConfig, spec: FinetuneSpec, task: Task) -> SublayerConfig:
    config = copy.deepcopy(old)
    labels = task.labels or ("score",)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "regression" if task.labels is None else "single_label_classification"
    config.init_seed = spec.seed
    config.source_checkpoint = None  # with another head it is no longer that file
    config.architectures = None
    if spec.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = spec.dropout
        config.embedding_dropout_prob = None
    if spec.pooling is not None:
        config.classifier_reads = spec.pooling
    if spec.head == "linear":
        config.classifier_dense, config.classifier_act, config.classifier_norm = False, None, False
    return config


def _pooler(model_type: str, kept: dict[str, Kept]) -> dict[str, Tensor]:
    """Tensors of the checkpoint below its head that the family maps to the projection before the labels."""
    family = FAMILIES.get(model_type)
    found: dict[str, Tensor] = {}
    if family is None:
        return found
    for row in family.rows:
        if not isinstance(row.source, str) or not isinstance(row.target, str):
            continue  # of several tensors, which no projection before the labels is made of
        if row.source.startswith("^") or not row.target.startswith(f"^{_TRANSFORM}."):
            continue
        for part in ("weight", "bias"):
            names = (f"{row.source}.{part}", f"{family.prefix}.{row.source}.{part}")
            tensor = next((kept[name].tensor for name in names if name in kept), None)
            if tensor is not None:
                found[f"{row.target[1:]}.{part}"] = tensor
    return found


def _tokenizer(folder: Path, source: str, vocab_size: int) -> tuple[Any, str]:
    """The checkpoint's tokenizer, and how it frames a row.

    A tokenizer that adds no special tokens of its own would run two texts into one another. It gets a frame from the
    tokens it has: each text is closed by the end token, as packed training text is.
    """
    tokenizer = tokenizer_of(folder) or _from_words(folder)
    if tokenizer is None:
        raise FinetuneError(
            f"texts are turned into tokens by the checkpoint's own tokenizer, and {source} has none: put its "
            "tokenizer.json beside the weights"
        )
    frame = "the tokenizer's own"
    end = tokenizer.eos_token or tokenizer.sep_token
    if tokenizer.num_special_tokens_to_add(pair=True) == 0:
        if end is None:
            raise FinetuneError(
                f"two texts in a row need a token between them, and the tokenizer of {source} has neither an eos nor a "
                "sep token: set one in its tokenizer_config.json"
            )
        from tokenizers.processors import TemplateProcessing

        frame = f"A {end} B {end}"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}",
            pair=f"$A {end} $B:1 {end}:1",
            special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))],
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocab_size:  # whatever stands there is masked
        tokenizer.pad_token = end or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer, frame


def _from_words(folder: Path) -> Any:
    """A tokenizer from files of words, as older checkpoints have them."""
    if not any((folder / name).is_file() for name in ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")):
        return None
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises very many kinds
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read ({error}): put tokenizer.json there"
        ) from error
    return found if found.is_fast else None
