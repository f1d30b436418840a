"""Folders as targets: checkpoints, tokenizers, tasks. Each kind has good folders, and what of them is spoilt."""

import hashlib
import json
import random
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

import sublayer as sl
from sublayer.finetune import classifier, data
from sublayer.finetune.tasks import TASKS
from sublayer.hf import load
from sublayer.train import tokenizer as training
from tests.finetune.files import write_glue
from torture import fuzz_inputs

Files = dict[str, bytes]
HUGE = (0, 1, 7, 2**31, 2**40, 2**62, 2**63, 2**64 - 1)
DTYPES = ("F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "X", "")


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        good: folders that are read: file -> content.
        spoilt: which files of them are spoilt.
        read: reads the folder, or the one file in it.
        command: arguments of the command line that reads the same, from (folder, a folder to write in).
        spoil: another way to spoil a file, given its name.
        share: of the count of files that is asked for; a kind that is slow to read has fewer.
    """

    good: tuple[Files, ...]
    spoilt: tuple[str, ...]
    read: Callable[[Path], Any]
    command: Callable[[Path, Path], list[str]] | None = None
    spoil: Callable[[random.Random, str, bytes], bytes] | None = None
    share: float = 1.0


def contents(folder: Path) -> Files:
    """All files of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def put(files: Files, folder: Path) -> None:
    """Make a folder of these files alone."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# -- safetensors -----------------------------------------------------------------------------------------------------


def spoilt_weights(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with its header, the length of it or its bytes spoilt."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    how = rng.randrange(8)
    if how == 0:
        return fuzz_inputs.spoilt_bytes(rng, data)
    if how == 1:
        return struct.pack("<Q", rng.choice((*HUGE, length + 1, length - 1))) + data[8:]
    if how == 2:
        header = fuzz_inputs.spoilt_tree(rng, header)
    elif how == 3:
        text = json.dumps(header)
        return packed(fuzz_inputs.spoilt_text(rng, text, [text]).encode("utf-8", "surrogatepass"), rest)
    else:
        names = [name for name in header if name != "__metadata__"]
        entry = header[rng.choice(names)]
        if how == 4:
            entry["shape"] = rng.choice(([], [rng.choice(HUGE)], [2**31, 2**31], entry["shape"] * 9, [-1], [1.5]))
        elif how == 5:
            entry["data_offsets"] = rng.choice(
                ([0, 0], [0, rng.choice(HUGE)], header[rng.choice(names)]["data_offsets"], [9, 3], [-4, 0], [], [1])
            )
        elif how == 6:
            entry["dtype"] = rng.choice(DTYPES)
        else:
            header[rng.choice(("x", "../x", "a" * 5000, "\0", "lm_head.weight"))] = header.pop(rng.choice(names))
    return packed(json.dumps(header).encode("utf-8", "surrogatepass"), rest)


def packed(header: bytes, rest: bytes) -> bytes:
    """A safetensors file of a header and bytes."""
    return struct.pack("<Q", len(header)) + header + rest


def _weights_too(rng: random.Random, name: str, data: bytes) -> bytes:
    if name.endswith(".safetensors"):
        return spoilt_weights(rng, data)
    return fuzz_inputs.spoilt_file(rng, data, Path(name).suffix)


# -- locks -----------------------------------------------------------------------------------------------------------


def spoilt_lock(rng: random.Random, name: str, data: bytes) -> bytes:
    """A lock that was changed, most often by somebody who set its hash right again."""
    spoilt = fuzz_inputs.spoilt_file(rng, data, ".json")
    blank = re.sub(rb'"sha256": "[0-9a-f]{64}"', b'"sha256": "' + b"0" * 64 + b'"', spoilt, count=1)
    if rng.random() < 0.25:
        return spoilt
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank.replace(b'"sha256": "' + b"0" * 64 + b'"', b'"sha256": "' + digest + b'"', 1)


# -- good folders ----------------------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> tuple[Files, ...]:
    """Tiny checkpoints of transformers: one file of weights, shards with an index, and one of our own."""
    torch.manual_seed(0)
    small = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 24, "max_position_embeddings": 32}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**small, **more))
    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=41, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, **more, num_key_value_heads=1))
    ours: Any = sl.SublayerForCausalLM(sl.SublayerConfig(design="paf", **small, intermediate_size=24))
    for name, model, size in (("a", bert, "5GB"), ("b", gpt, "5GB"), ("c", llama, "6KB"), ("d", ours, "5GB")):
        model.save_pretrained(folder / name, max_shard_size=size)
    return tuple(contents(folder / name) for name in "abcd")


def tokenizers(folder: Path) -> tuple[Files, ...]:
    """A BPE tokenizer of bytes as `train` makes it, and a word tokenizer with BERT's frame."""
    text = ["the quick brown fox jumps over the lazy dog", "one line and another line", "aa ab ba bb"] * 4
    found = []
    for at, kind in enumerate((models.BPE(), models.WordLevel(unk_token="[UNK]"))):
        made = Tokenizer(kind)
        made.pre_tokenizer = pre_tokenizers.ByteLevel() if at == 0 else pre_tokenizers.Whitespace()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.BpeTrainer if at == 0 else trainers.WordLevelTrainer
        made.train_from_iterator(text, trainer(vocab_size=90, special_tokens=special, show_progress=False))
        if at:
            made.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
            mask_token="[MASK]", eos_token="[SEP]", model_max_length=48,
        ).save_pretrained(folder / str(at))  # fmt: skip
        found.append(contents(folder / str(at)))
    return tuple(found)


# -- readers ---------------------------------------------------------------------------------------------------------


def _read_checkpoint(folder: Path) -> None:
    load(folder)


def _read_training_tokenizer(folder: Path) -> None:
    found = training.load(folder)
    words = training.vocabulary(found, "mlm")
    training.encode(found, ["the quick brown fox", "", "[MASK] é 🙂"], words.end)


def _read_finetuning_tokenizer(folder: Path) -> None:
    found, _ = classifier._tokenizer(folder, str(folder), 200)
    found(["the quick", "fox"], ["lazy", "[SEP] dog"], padding=True, truncation=True, max_length=8)


def _read_config(folder: Path) -> None:
    sl.audit(str(folder / "config.json"))


def _read_glue(folder: Path) -> None:
    for key in data.tasks_in(str(folder)):
        data.read(TASKS[key], str(folder))


def targets(folder: Path) -> dict[str, Target]:
    """Name -> kind of folder."""
    saved, words = checkpoints(folder / "checkpoints"), tokenizers(folder / "tokenizers")
    write_glue(folder / "glue")
    whole = contents(folder / "glue")
    rte = {Path(name).name: content for name, content in whole.items() if "RTE" in name.upper()}
    configs = tuple({"config.json": files["config.json"]} for files in saved)
    bert = {**saved[0], **words[1]}
    put(bert, folder / "bert")

    def tuned(at: Path, out: Path) -> list[str]:
        return ["finetune", str(folder / "bert"), "--task", "rte", "--data", str(at), "--out", str(out / "o")]

    def with_words(at: Path, out: Path) -> list[str]:
        shutil.copytree(folder / "bert", out / "m")
        for name in words[1]:
            (out / "m" / name).unlink(missing_ok=True)
        shutil.copytree(at, out / "m", dirs_exist_ok=True, symlinks=True)
        return ["finetune", str(out / "m"), "--task", "rte", "--data", str(folder / "glue"), "--out", str(out / "o")]

    tokenizer_files = ("tokenizer.json", "tokenizer.json", "tokenizer_config.json")
    weights = ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    return {
        "task": Target((rte,), tuple(rte), lambda at: data.read(TASKS["rte"], str(at)), tuned),
        "glue": Target((whole,), tuple(whole), _read_glue, share=0.5),
        "config": Target(
            configs, ("config.json",), _read_config, lambda at, out: ["audit", str(at / "config.json")], share=0.15
        ),
        "checkpoint": Target(
            saved, ("config.json", "generation_config.json", *weights, *weights), _read_checkpoint,
            lambda at, out: ["convert", str(at), "--defects"], _weights_too, share=0.15,
        ),
        "tokenizer": Target(
            words, tokenizer_files, _read_training_tokenizer,
            lambda at, out: ["train", "paf", "--tokenizer", str(at), "--out", str(out / "o"), "--steps", "1"],
            share=0.15,
        ),
        "tokenizer of a checkpoint": Target(
            words, tokenizer_files, _read_finetuning_tokenizer, with_words, share=0.15
        ),
    }  # fmt: skip
