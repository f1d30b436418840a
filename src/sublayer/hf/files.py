"""Weights on disk: safetensors only, read and written one tensor at a time."""

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sublayer import plain_files
from sublayer.hf.errors import CheckpointError

MOST_INDEX = 128 * 1024 * 1024  # bytes; the largest published ones have some millions
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


class WeightFiles:
    """The tensors of a folder, by name.

    Each is a view of the file, mapped into memory for this tensor alone: its pages are given back with the tensor, so a
    model is never in memory twice.

    Raises:
        CheckpointError: there is no safetensors file, or one is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.files = _where(folder)

    def names(self) -> list[str]:
        """All tensors."""
        return list(self.files)

    def read(self, name: str) -> Tensor:
        """One tensor, to be copied and not to be kept."""
        try:
            with safe_open(self.files[name], framework="pt") as stream:
                tensor: Tensor = stream.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(
                f"{name} cannot be read from {self.files[name]} ({error}): download the file again"
            ) from error
        return tensor


def _where(folder: Path) -> dict[str, Path]:
    single, index = folder / SINGLE, folder / INDEX
    if index.is_file():
        try:
            listed = json.loads(plain_files.read_bytes(index, MOST_INDEX).decode("utf-8"))["weight_map"]
            places = {str(name): folder / _inside(file) for name, file in listed.items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{index} must hold a weight_map of tensor names to files, and does not ({error}): download it again"
            ) from error
        missing = sorted({place.name for place in places.values() if not place.is_file()})
        if missing:
            raise CheckpointError(f"{index} names files that are not there: {', '.join(missing)}; download them")
        return places
    if single.is_file():
        try:
            with safe_open(single, framework="pt") as stream:
                return dict.fromkeys(stream.keys(), single)
        except SafetensorError as error:
            raise CheckpointError(f"{single} is not a whole safetensors file ({error}): download it again") from error
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"weights are read from safetensors only, and {folder} has {', '.join(pickles[:3])}, which can run code "
            "when opened: load the checkpoint with transformers where you trust it, and save_pretrained() it"
        )
    raise CheckpointError(f"{folder} has no {SINGLE} and no {INDEX}: give a folder with the weights of a model")


def _inside(file: Any) -> str:
    """The name of a file of the folder itself."""
    if not isinstance(file, str) or not file or Path(file).name != file or file == ".." or "\\" in file or "\0" in file:
        raise ValueError(f"{str(file)[:80]!r} is not the name of a file in this folder")
    return file


def size_in_bytes(size: int | str) -> int:
    """5000, "500MB" or "5GB" as a number of bytes.

    Raises:
        CheckpointError: it is none of these.
    """
    if isinstance(size, int) and size > 0:
        return size
    text = str(size).upper().strip()
    unit = _UNITS.get(text[-2:])
    if unit is None or not text[:-2].strip().replace(".", "", 1).isdigit():
        raise CheckpointError(f"max_shard_size ({size!r}) must be a number of bytes, or such as '500MB' or '5GB'")
    return max(1, int(float(text[:-2]) * unit))


def write_weights(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    max_shard_size: int | str = "5GB",
) -> None:
    """Write tensors as they come: one file, or shards with an index where they exceed ``max_shard_size``.

    Args:
        tensors: (name, tensor) in any order.
        shapes: shape and dtype of each, which decide the files before the first tensor is there.
    """
    shards = _shards(shapes, size_in_bytes(max_shard_size))
    files = [SINGLE] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]  # fmt: skip
    place: dict[str, tuple[Path, int]] = {}
    for file, names in zip(files, shards, strict=True):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in names:
            size = _bytes(*shapes[name])
            header[name] = {
                "dtype": _DTYPES[shapes[name][1]],
                "shape": shapes[name][0],
                "data_offsets": [at, at + size],
            }
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        for name in names:
            place[name] = (folder / file, 8 + len(text) + header[name]["data_offsets"][0])
        with open(folder / file, "wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + at)
    for name, tensor in tensors:
        path, offset = place.pop(name)
        with open(path, "r+b") as stream:
            stream.seek(offset)
            tensor.contiguous().flatten().view(torch.uint8).cpu().numpy().tofile(stream)
    if place:
        raise CheckpointError(f"{', '.join(sorted(place)[:6])} got no numbers: the plan and the tensors disagree")
    for file in files:
        with open(folder / file, "rb") as stream:
            os.fsync(stream.fileno())
    if len(files) > 1:
        total = sum(_bytes(*shapes[name]) for name in shapes)
        listed = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return int(torch.Size(shape).numel()) * dtype.itemsize


def _shards(shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]], most: int) -> list[list[str]]:
    def fill() -> Iterator[list[str]]:
        shard: list[str] = []
        held = 0
        for name in shapes:
            size = _bytes(*shapes[name])
            if shard and held + size > most:
                yield shard
                shard, held = [], 0
            shard.append(name)
            held += size
        yield shard

    return list(fill())
