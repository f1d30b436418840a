"""The numbers that inputs are made from: sizes of a config, or of the modules where there is no config."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 2
PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
SMALL_PRIMES = (11, 7, 5, 3, 2)
MOST_LENGTH = 1 << 14
IMAGE_SIZES = (224, 256, 384, 448, 32, 512, 64, 28, 518, 196)
FIELD_OF_IDS = re.compile(r"(_token_ids?|_token_index|_ids?|_idx)$")


@dataclass
class Sizes:
    """Numbers that inputs are made from."""

    module: nn.Module
    config: Any = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(20))

    def __post_init__(self) -> None:
        self.fields = dict(fields_of(self.config))
        self.vocabulary = self._vocabulary()
        taken = {abs(v) for v in self.fields.values() if isinstance(v, int)}
        if not self.fields:
            taken = {n for p in self.module.parameters() for n in p.shape}
        most = min([v for k, v in self.fields.items() if self._bounds_length(k, v)], default=MOST_LENGTH)
        free = [p for p in PRIMES if p not in taken and 2 * p not in taken and p + 2 <= most]
        free += [p for p in SMALL_PRIMES if p + 2 <= most]
        self.length, self.second = [*free, 2, 2][:2]
        special = {
            n
            for k, v in self.fields.items()
            if FIELD_OF_IDS.search(k)
            for n in (v if isinstance(v, list | tuple) else (v,))
            if isinstance(n, int)
        }
        first = min(self.vocabulary, 1 << 16)
        plain = torch.ones(max(first, 1), dtype=torch.bool)
        plain[: min(3, first)] = False
        plain[[int(i) for i in special if 0 <= i < first]] = False
        self.allowed = plain.nonzero().flatten() if bool(plain.any()) else torch.arange(max(first, 1))

    @staticmethod
    def _bounds_length(name: str, value: Any) -> bool:
        return isinstance(value, int) and value > 2 and bool(re.search(r"max_position|max_seq|n_positions|n_ctx", name))

    def _vocabulary(self) -> int:
        found = [v for k, v in self.fields.items() if k.endswith("vocab_size") and isinstance(v, int) and v > 0]
        with_method = getattr(self.module, "get_input_embeddings", None)
        if callable(with_method):
            try:
                table = with_method()
            except Exception:  # the method is optional; models without a table raise what they like
                table = None
            if isinstance(getattr(table, "num_embeddings", None), int):
                found.append(table.num_embeddings)
        if not found:
            tables = [m.num_embeddings for m in self.module.modules() if isinstance(m, nn.Embedding)]
            found = tables[:1]
        return min(found, default=64)

    def number(self, *names: str, default: int = 0) -> int:
        """The first positive whole number among the config's fields of these names, outermost first."""
        for name in names:
            for key, value in self.fields.items():
                if key.rpartition(".")[2] == name:
                    value = value[0] if isinstance(value, list | tuple) and value else value
                    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                        return value
        return default

    # --- tensors --------------------------------------------------------------------------------------------------

    def ids(self, length: int) -> Tensor:
        """``[2, length]`` ids that mean nothing special."""
        pick = torch.randint(len(self.allowed), (BATCH, length), generator=self.generator)
        return self.allowed[pick]

    def floats(self, *shape: int) -> Tensor:
        """Random numbers; of big tensors, zeros: memory that is never touched costs nothing."""
        if torch.Size(shape).numel() > 1 << 16:
            return torch.zeros(*shape)
        return torch.randn(*shape, generator=self.generator)

    def mask(self, length: int) -> Tensor:
        """``[2, length]`` ones, and a zero at the end of the second row."""
        mask = torch.ones(BATCH, length, dtype=torch.long)
        mask[1, -1] = 0
        return mask


def fields_of(config: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every field of a config and of the configs inside it, by dotted name; outer fields first."""
    if config is None or depth > 3:
        return
    inner: list[tuple[str, Any]] = []
    items = config.items() if isinstance(config, dict) else getattr(config, "__dict__", {}).items()
    for name, value in list(items):
        name = f"{prefix}{name}"
        if isinstance(value, int | float | str | list | tuple) or value is None:
            yield name, value
        elif isinstance(value, dict) or hasattr(value, "to_dict"):
            inner.append((name, value))
    for name, value in inner:
        if not name.rpartition(".")[2].startswith(("id2label", "label2id", "_")):
            yield from fields_of(value, f"{name}.", depth + 1)


def channels(module: nn.Module) -> int:
    """What the first convolution reads, if that can be an image; behind a fold it reads more."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Conv3d):
            return m.in_channels if m.in_channels <= 4 else 3
    return 3


def extents(sizes: Sizes) -> list[tuple[int, int]]:
    """Heights and widths that an image may have: what the config or a module says, then usual ones."""
    found: list[tuple[int, int]] = []

    def add(value: Any) -> None:
        if isinstance(value, dict):
            value = (value.get("height"), value.get("width"))
        if isinstance(value, torch.Size | list | tuple) and len(value) >= 2:
            value = tuple(value[-2:])
        else:
            value = (value, value)
        if all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= 4096 for n in value):
            found.append(value)

    for name, value in sizes.fields.items():
        if name.rpartition(".")[2] in ("image_size", "img_size", "input_size"):
            add(value)
    for m in sizes.module.modules():
        for name in ("img_size", "image_size", "default_cfg", "pretrained_cfg"):
            value = m.__dict__.get(name)
            add(value.get("input_size") if isinstance(value, dict) else value)
    return [*dict.fromkeys([*found, *((n, n) for n in IMAGE_SIZES)])]
