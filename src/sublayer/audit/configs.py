"""Configs of transformers: where they come from, and the same one deeper. No code of a checkpoint is run."""

import contextlib
import copy
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sublayer import plain_files
from sublayer.audit.result import AuditError

ENTRY_POINTS = "sublayer.architectures"
REMEDY = "pass the live module, or a local folder that holds its config.json"
DEPTHS = (
    "num_hidden_layers num_layers n_layers n_layer num_decoder_layers num_encoder_layers decoder_layers encoder_layers "
    "decoder_num_hidden_layers encoder_num_hidden_layers depth"
).split()


def configs_in(config: Any) -> Iterator[Any]:
    """A config of transformers and all configs inside it, outermost first."""
    yield config
    for name in getattr(config, "sub_configs", None) or ():
        inner = getattr(config, name, None)
        if is_config(inner):
            yield from configs_in(inner)


def deepened(config: Any, layers: int) -> Any:
    """The same config with another number of layers; lists with one entry a layer are repeated or cut to fit."""
    state = copy.deepcopy(config.to_dict())
    found = False

    def change(state: dict[str, Any]) -> None:
        nonlocal found
        names = [n for n in DEPTHS if isinstance(state.get(n), int) and not isinstance(state.get(n), bool)]
        depths = {state[n] for n in names if state[n] > 0}
        for name in names:
            state[name], found = layers, True
        for name, value in state.items():
            if isinstance(value, list) and len(value) in depths and len(value) != layers:
                state[name] = [value[i % len(value)] for i in range(layers)]
            elif isinstance(value, dict) and ("model_type" in value or name.endswith("config")):
                change(value)

    own_name = getattr(type(config), "attribute_map", {}).get("num_hidden_layers")
    if own_name and isinstance(state.get(own_name), int) and own_name not in DEPTHS:
        state[own_name], found = layers, True
    change(state)
    if not found:
        raise AuditError(
            f"the number of layers must be a field of the config; {type(config).__name__} has none; {REMEDY}"
        )
    try:
        with quiet():
            return type(config).from_dict(state)
    except Exception as error:  # a config's own checks raise what they like
        raise AuditError(
            f"{type(config).__name__} must allow {layers} layers; it refused ({first_line(error)}); {REMEDY}"
        ) from error


def is_config(value: Any) -> bool:
    """Whether it is a config of transformers."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(value, transformers.PreTrainedConfig)


def config_of(name: str) -> Any:
    """The config at a path or of a model id.

    Raises:
        AuditError: there is none, or transformers does not accept it.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise AuditError(
                f"a folder must hold a config.json; {name!r} holds none; name the folder of the checkpoint itself"
            )
    elif not path.is_file():
        looks_local = name.startswith((".", "/", "~")) or name.endswith(".json") or name.count("/") > 1
        if looks_local or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name):
            raise AuditError(f"a path must exist; got {name!r}; name a config.json, or a folder that holds one")
        return _loaded(name, name, hub=True)
    try:
        state = json.loads(plain_files.read_bytes(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AuditError(f"a config must be JSON; {str(path)!r} is not ({first_line(error)}); {REMEDY}") from error
    if not isinstance(state, dict):
        raise AuditError(f"a config must be a JSON object; {str(path)!r} holds a {type(state).__name__}; {REMEDY}")
    kind = state.get("model_type")
    if not isinstance(kind, str):
        raise AuditError(f"a config must say its model_type as text; {str(path)!r} says {kind!r}; {REMEDY}")
    _known(kind, str(path))
    return _loaded(str(path), name)


def _known(kind: str, where: str) -> None:
    """Make sure that transformers knows the model type, with the help of installed packages that declare it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind in CONFIG_MAPPING:
        return
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=kind):
        try:
            point.load()
        except Exception as error:  # somebody else's package
            raise AuditError(
                f"a package that declares a model type must be importable; {point.value} for {kind!r} is not "
                f"({type(error).__name__}: {first_line(error)}); repair it, or pass the live module"
            ) from error
    if kind not in CONFIG_MAPPING:
        raise AuditError(
            f"model_type must be known to transformers or to an installed package with the entry point "
            f"{ENTRY_POINTS!r}; {where!r} says {kind!r}, and code of a checkpoint is never run; pass the live module"
        )


def _loaded(source: str, name: str, hub: bool = False) -> Any:
    """The config through transformers' own reader, which fills in defaults and repairs old fields."""
    from transformers import AutoConfig, PreTrainedConfig

    try:
        with quiet():
            if hub:
                state, _ = PreTrainedConfig.get_config_dict(source)
                if isinstance(state.get("model_type"), str):
                    _known(state["model_type"], name)
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except AuditError:
        raise
    except Exception as error:  # readers of configs raise anything from KeyError to their own classes
        if hub:
            raise AuditError(
                f"a model id must be one whose config can be fetched; {name!r} cannot ({type(error).__name__}: "
                f"{first_line(error)}); check its spelling and the network (HF_HUB_OFFLINE), or name a local folder "
                "that holds its config.json"
            ) from error
        raise AuditError(
            f"a config must be one that transformers accepts; {name!r} was refused ({type(error).__name__}: "
            f"{first_line(error)}); correct it, or pass the live module"
        ) from error


def first_line(error: BaseException) -> str:
    """An error's message, short enough to stand inside ours."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no message"
    return text if len(text) <= 300 else f"{text[:297]}..."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No advice from transformers about configs and generation while we build."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
