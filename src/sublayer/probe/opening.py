"""A model with its weights, from what a user names."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sublayer.audit import target as named
from sublayer.audit.configs import config_of, quiet
from sublayer.audit.result import AuditError
from sublayer.probe.errors import ProbeError


@dataclass(frozen=True)
class Opened:
    """A live model.

    Attributes:
        name: as the user gave it.
        module: the model in evaluation mode.
        folder: where its tokenizer may be; None if it cannot have one.
        notes: what the reader of its numbers must know, such as that the weights are random.
    """

    name: str
    module: nn.Module
    folder: str | None
    notes: tuple[str, ...] = ()


def open_model(name: str, device: str = "cpu", seed: int = 0) -> Opened:
    """Load a model. No pickle is read and no code of a checkpoint is run.

    Args:
        name: a Hub id or a checkpoint's folder (safetensors); a ``config.json`` (random weights); or
            ``package.module:callable`` that returns a module.
        device: ``cpu``, ``cuda``, or ``auto`` for the first GPU if there is one.
        seed: of random weights.

    Raises:
        ProbeError: it cannot be loaded.
    """
    where = _device(device)
    torch.manual_seed(seed)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name):
        found = named._imported(name)
        module = found if isinstance(found, nn.Module) else _called(found, name)
        return Opened(name, module.to(where).eval(), None, ())
    try:
        config = config_of(name)
        model_class = named._class_of(config)
    except AuditError as error:
        raise ProbeError(str(error)) from error
    if Path(name).suffix == ".json":
        with quiet():
            module = model_class._from_config(named._part_for(config, model_class))
        folder = str(Path(name).resolve().parent)
        return Opened(name, module.to(where).eval(), folder, ("the weights are random: a config.json has none",))
    return Opened(name, _loaded(model_class, name).to(where).eval(), name, ())


def _loaded(model_class: Any, name: str) -> nn.Module:
    try:
        with quiet(), _without_progress():
            found = model_class.from_pretrained(name, use_safetensors=True)
    except Exception as error:  # files and the network raise very many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ProbeError(
            f"a checkpoint is loaded from safetensors: {name!r} could not be ({type(error).__name__}: "
            f"{lines[0][:200]}); give a folder with config.json and model.safetensors, or a config.json for random "
            "weights"
        ) from error
    assert isinstance(found, nn.Module)
    return found


@contextlib.contextmanager
def _without_progress() -> Any:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _called(found: Any, name: str) -> nn.Module:
    if not callable(found):
        raise ProbeError(f"a callable that returns a module is needed: {name!r} is a {type(found).__name__}")
    try:
        module = found()
    except Exception as error:  # it is the user's code
        raise ProbeError(f"a callable must return a module when called without arguments: {name!r} raised "
                         f"{type(error).__name__}: {error}") from error  # fmt: skip
    if not isinstance(module, nn.Module):
        raise ProbeError(f"a callable must return an nn.Module: {name!r} returned a {type(module).__name__}")
    return module


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ProbeError(
            f"device is auto, cpu or one that torch has: got {name!r} ({str(error).splitlines()[0]})"
        ) from None
    return found
