"""Checkpoints of strangers: no pickle is opened, no code of a folder runs, nothing outside it is read, and no size that
a file claims is believed before memory is taken."""

import contextlib
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import sublayer as sl
from sublayer.audit import AuditError
from sublayer.finetune import classifier
from sublayer.finetune.errors import FinetuneError
from sublayer.hf import load
from sublayer.hf.convert import tokenizer_of
from sublayer.hf.errors import CheckpointError
from sublayer.notation import DesignError
from sublayer.probe.opening import open_model
from sublayer.train import tokenizer as training
from sublayer.train.errors import TrainError

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS, MOST_BYTES = 20.0, 500 << 20  # of one refusal, beyond what the process holds
ENTRIES: tuple[tuple[str, Callable[[Path], Any]], ...] = (
    ("load", load),
    ("audit", lambda at: sl.audit(str(at))),
    ("probe", lambda at: open_model(str(at))),
    ("tokenizer", lambda at: training.load(at)),
    ("convert", tokenizer_of),
    ("finetune", lambda at: classifier._tokenizer(at, str(at), 100)),
)


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny GPT-2, whole."""
    torch.manual_seed(0)
    at = tmp_path / "given"
    GPT2LMHeadModel(GPT2Config(vocab_size=41, n_embd=16, n_layer=2, n_head=2, n_positions=32)).save_pretrained(at)
    return at


def refused(what: Callable[[], Any]) -> str:
    """The message that something is refused with, quickly and without taking memory."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((CheckpointError, AuditError, TrainError, FinetuneError)) as found:
        what()
    assert time.monotonic() - began < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MOST_BYTES
    return str(found.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path: Path, head: bytes, rest: bytes = b"", length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + rest)


# -- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors", "tf_model.h5"])
def test_a_pickle_is_never_opened(name: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    for kind in (pickle.dumps(Payload(marker)), None):
        if kind is None:
            torch.save({"transformer.wte.weight": Payload(marker)}, folder / name)
        else:
            (folder / name).write_bytes(kind)
        refused(lambda: load(folder))
        with pytest.raises(ValueError, match="safetensors"):
            open_model(str(folder))
    assert not marker.exists()
    with open(folder / name, "rb") as stream:  # the payload is one
        torch.load(stream, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("entry", [name for name, _ in ENTRIES])
@pytest.mark.parametrize("kind", ["gpt2", "never_heard_of"])
def test_code_of_a_folder_is_never_imported(entry: str, kind: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    code = f"open({str(marker)!r}, 'w')\nclass C: pass\n"
    for name in ("configuration_x.py", "modeling_x.py", "tokenization_x.py", "__init__.py"):
        (folder / name).write_text(code)
    places = {
        "AutoConfig": "configuration_x.C",
        "AutoModel": "modeling_x.C",
        "AutoModelForCausalLM": "modeling_x.C",
        "AutoTokenizer": ["tokenization_x.C", "tokenization_x.C"],
    }
    edit(folder / "config.json", model_type=kind, auto_map=places, trust_remote_code=True)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": places, "tokenizer_class": "C", "trust_remote_code": True})
    )
    (folder / "tokenizer.json").write_text(WORDS)
    before = set(sys.modules)
    try:
        dict(ENTRIES)[entry](folder)
    except ValueError as error:
        assert type(error).__module__.startswith("sublayer.")
    assert not marker.exists()
    assert not [
        name for name in set(sys.modules) - before if name.endswith("_x") or name.startswith("transformers_mod")
    ]


# -- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.safetensors", "ABSOLUTE", "a/../../secret.safetensors", "..", "", None, 7])
def test_an_index_names_files_of_its_folder_only(name: Any, folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, tmp_path / "secret.safetensors", {"format": "pt"})
    (folder / "model.safetensors").unlink()
    name = str(tmp_path / "secret.safetensors") if name == "ABSOLUTE" else name
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weight_map" in refused(lambda: load(folder))


def test_a_tensor_that_a_shard_does_not_hold(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"weight_map": dict.fromkeys([*tensors, "transformer.h.9.ln_1.weight"], "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: load(folder))


# -- sizes that files claim ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 101 * 10**6, 10**9, 0, 1])
def test_the_length_of_a_header_is_not_believed(length: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    put(path, path.read_bytes()[8:], length=length)
    refused(lambda: load(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**15]},
        {"shape": [2**32, 2**32]},
        {"shape": [2**63, 2]},
        {"shape": [-1, -2624]},
        {"shape": []},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [0, 10**15]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0, 64]},
        {"dtype": "F64"},
        {"dtype": "no such"},
        {"dtype": 4},
        {"shape": [10**15], "data_offsets": [0, 4 * 10**15]},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_file(change: dict[str, Any], folder: Path) -> None:
    path = folder / "model.safetensors"
    head, rest = header(path)
    first = next(name for name in head if head[name].get("data_offsets", [1])[0] == 0)
    head[first] |= change
    put(path, json.dumps(head).encode(), rest)
    refused(lambda: load(folder))


def test_tensors_that_share_bytes(folder: Path) -> None:
    path = folder / "model.safetensors"
    head, rest = header(path)
    one, other = [name for name in head if head[name].get("shape") == [16]][:2]
    head[one]["data_offsets"] = head[other]["data_offsets"]
    put(path, json.dumps(head).encode(), rest)
    refused(lambda: load(folder))


def test_a_name_that_stands_twice_in_a_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    head, rest = header(path)
    name = next(name for name in head if name != "__metadata__")
    text = json.dumps(head)
    put(path, (text[:-1] + f", {json.dumps(name)}: " + json.dumps(head[name]) + "}").encode(), rest)
    try:
        load(folder)  # the later one counts, as in JSON; and it is one tensor of the file
    except CheckpointError as error:
        assert "download" in str(error)


def test_a_header_without_end(folder: Path) -> None:
    put(folder / "model.safetensors", b'{"a":' * 200_000)
    refused(lambda: load(folder))


SIZES = ("n_layer", "n_embd", "vocab_size", "n_positions", "n_inner", "n_head")


@pytest.mark.parametrize("value", [10**9, 9 * 10**18, 10**30, -1, 0, 1.5, True, "12", [], None], ids=str)
def test_sizes_of_a_config_are_refused_before_memory_is_taken(value: Any, folder: Path) -> None:
    whole = (folder / "config.json").read_text()
    for name in SIZES:
        (folder / "config.json").write_text(whole)
        edit(folder / "config.json", **{name: value})
        for what in (load, lambda at: sl.audit(str(at))):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            began = time.monotonic()
            with contextlib.suppress(CheckpointError, AuditError, DesignError):
                what(folder)
            assert time.monotonic() - began < MOST_SECONDS, name
            assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MOST_BYTES, name


def test_wide_numbers_are_not_measured(tmp_path: Path) -> None:
    """The auditor once ran a norm on as many numbers as a config said that a row has."""
    values = {"model_type": "llama", "vocab_size": 41, "hidden_size": 10**9, "num_hidden_layers": 2, "head_dim": 8,
              "num_attention_heads": 2, "intermediate_size": 24}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sl.audit(str(tmp_path))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MOST_BYTES


@pytest.mark.parametrize("kind", ["fifo", "huge", "folder", "list", "deep", "twice quantised"])
def test_a_config_that_is_no_plain_small_object(kind: str, folder: Path) -> None:
    path = folder / "config.json"
    whole = path.read_text()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with open(path, "wb") as stream:
            stream.truncate(1 << 36)  # takes no room on the disk
    else:
        texts = {
            "list": "[1]",
            "deep": "[" * 100_000,
            "twice quantised": whole.replace("{", '{"quantization_config": "x",', 1),
        }
        path.write_text(texts[kind])
    refused(lambda: load(folder))
    if kind != "twice quantised":
        refused(lambda: sl.audit(str(folder)))


# -- weights of our own checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "reshaped"])
def test_weights_of_our_own_are_all_there_or_refused(how: str, tmp_path: Path) -> None:
    config = sl.SublayerConfig(design="paf", vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    model: Any = sl.SublayerForCausalLM(config)
    model.save_pretrained(tmp_path)
    load(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("attn.v_proj.weight"))
    tensors[name] = tensors[name][:, :4].contiguous()
    if how == "missing":
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    message = refused(lambda: load(tmp_path))  # transformers would draw it anew
    assert how != "missing" or name in message


# -- tokenizers ------------------------------------------------------------------------------------------------------

WORDS = json.dumps({
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
})  # fmt: skip
BOMBS = {
    "nothing": "",
    "no object": "[]",
    "deep": "[" * 100_000,
    "binary": "\ud800\udfff",
    "huge id": WORDS.replace('"a": 1', '"a": 4294967295'),
    "id beyond": WORDS.replace('"a": 1', '"a": 99999999999999999999'),
    "pattern without end": WORDS.replace(
        '{"type": "Whitespace"}',
        json.dumps(
            {"type": "Split", "pattern": {"Regex": "(a*)*" * 50 + "("}, "behavior": "Isolated", "invert": False}
        ),
    ),
    "normalisers in normalisers": WORDS.replace(
        '"normalizer": null',
        '"normalizer": ' + '{"type": "Sequence", "normalizers": [' * 5000 + "]}" * 5000,
    ),
    "replaced by a lot": WORDS.replace(
        'null, "pre', json.dumps({"type": "Prepend", "prepend": "x" * 10**6}) + ', "pre', 1
    ),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("entry", ["tokenizer", "convert", "finetune"])
def test_a_tokenizer_is_read_or_refused(name: str, entry: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(BOMBS[name], encoding="utf-8", errors="surrogatepass")
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        dict(ENTRIES)[entry](folder)
    except (CheckpointError, TrainError, FinetuneError) as error:
        assert str(error)
    assert time.monotonic() - began < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MOST_BYTES


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_says_it_in_one_message(folder: Path, tmp_path: Path) -> None:
    """In a process that may not take 8 GB of addresses."""
    marker = tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    torch.save({"w": Payload(marker)}, folder / "pytorch_model.bin")
    done = subprocess.run(
        [sys.executable, "-m", "sublayer", "convert", str(folder), str(tmp_path / "new"), "--to", "paf"],
        capture_output=True, text=True, check=False, timeout=120, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert "safetensors only" in done.stderr
    assert "Traceback" not in done.stderr
    assert not marker.exists()
    assert not (tmp_path / "new").exists()
