"""What is audited: a live module, or one that is built without weights from a config, a checkpoint's name or a callable."""

import contextlib
import copy
import importlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sublayer.audit.inputs import Inputs, attempts, fields_of, given
from sublayer.audit.result import AuditError

ENTRY_POINTS = "sublayer.architectures"
MOST_COUNT = 100_000  # layers, experts or heads: more is a slip, and building them would take for ever
COUNTS = re.compile(r"^(num|n)_.*(layers?|experts|heads?|blocks)$|^(depth|(en|de)coder_layers|n_layers?|n_heads?)$")
DEPTHS = (
    "num_hidden_layers num_layers n_layers n_layer num_decoder_layers num_encoder_layers decoder_layers encoder_layers "
    "decoder_num_hidden_layers encoder_num_hidden_layers depth"
).split()
# Heads in the order in which one is looked for where a config names none: what makes text first.
HEADS = (
    "CAUSAL_LM SEQ_TO_SEQ_CAUSAL_LM MASKED_LM IMAGE_TEXT_TO_TEXT IMAGE_CLASSIFICATION SPEECH_SEQ_2_SEQ CTC "
    "AUDIO_CLASSIFICATION VIDEO_CLASSIFICATION MASKED_IMAGE_MODELING"
).split()
REMEDY = "pass the live module, or a local folder that holds its config.json"


@dataclass(frozen=True)
class Target:
    """A model to audit.

    Attributes:
        name: as the user gave it, or the class of the module.
        module: the model, unwrapped; on the meta device where we built it.
        attempts: inputs to try in order until one runs.
        config: its config, where it has one.
        rebuild: the same architecture with another number of layers, on the meta device; raises AuditError where its
            config does not let us. None where there is no config that can say.
    """

    name: str
    module: nn.Module
    attempts: tuple[Inputs, ...]
    config: Any | None = None
    rebuild: Callable[[int], nn.Module] | None = None


def open_target(target: Any, inputs: Any = None) -> Target:
    """Find out what is meant by ``target`` and how to feed it.

    Args:
        target: a module; a config of transformers; the path of a ``config.json`` or of a folder with one;
            ``package.module:callable``; a model id of the Hugging Face Hub; a callable that returns a module. No weights
            are read and no code of a checkpoint is run.
        inputs: a tensor, a tuple of positional arguments or a dict of named ones, in place of ours.

    Raises:
        AuditError: the target is none of these, or cannot be built.
    """
    config: Any = None
    if isinstance(target, nn.Module):
        name, module = type(unwrap(target)).__name__, target
    elif isinstance(target, str | os.PathLike):
        name = os.fspath(target)
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise AuditError(f"a target must be a module, a config or a name; got {target!r}; {REMEDY}")
        if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name):
            module = _call(_imported(name), name)
        else:
            config = _config_of(name)
            module = build(config)
    elif _is_config(target):
        name, config = f"{type(target).__name__}", target
        module = build(config)
    elif callable(target):
        name = getattr(target, "__qualname__", type(target).__name__)
        module = _call(target, name)
    else:
        raise AuditError(
            f"a target must be a module, a config, a path, a model id, 'package.module:callable' or a callable; got "
            f"{type(target).__name__}; {REMEDY}"
        )
    module = unwrap(module)
    config = config if config is not None else getattr(module, "config", None)
    try:
        tries = attempts(module, config) if inputs is None else (given(module, inputs),)
    except AuditError:
        raise
    except Exception as error:  # a strange module can break any look at it; the user can still give inputs
        raise AuditError(
            f"inputs are made from the signature of forward and the sizes of a model; those of {name} cannot be read "
            f"({type(error).__name__}: {_first_line(error)}); pass inputs=..."
        ) from error
    return Target(name, module, tries, config, _rebuilder(module, getattr(module, "config", None)))


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    for _ in range(16):
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif "_orig_mod" in module._modules and isinstance(module._modules["_orig_mod"], nn.Module):
            module = module._modules["_orig_mod"]
        else:
            break
    return module


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Leave a live module as it was: whatever a forward pass writes into its attributes is put back afterwards.

    A traced pass would otherwise leave meta tensors in caches (rotary tables) of the user's model. While the context
    lasts, attention and experts that refuse the meta device are replaced by ones that do not.
    """
    parts = [(m, m.__dict__.copy(), m._buffers.copy(), m._modules.copy()) for m in module.modules()]
    configs = {id(c): c for c in (getattr(m, "config", None) for m, *_ in parts) if _is_config(c)}
    kept = [(c, c.__dict__.copy()) for c in configs.values()]
    try:
        for config in configs.values():
            if getattr(config, "_attn_implementation_internal", None) not in (None, "eager", "sdpa"):
                supports = getattr(module, "_supports_sdpa", False)
                config._attn_implementation_internal = "sdpa" if supports else "eager"
            if getattr(config, "_experts_implementation_internal", None) not in (None, "batched_mm", "grouped_mm"):
                config._experts_implementation_internal = "batched_mm"
            if getattr(config, "use_cache", False) is True:
                config.use_cache = False
        yield
    finally:
        for config, state in kept:
            config.__dict__.clear()
            config.__dict__.update(state)
        for m, state, buffers, modules in parts:
            m.__dict__.clear()
            m.__dict__.update(state)
            for now, before in ((m._buffers, buffers), (m._modules, modules)):
                now.clear()
                now.update(before)


# --- building -------------------------------------------------------------------------------------------------------


def build(config: Any, model_class: Any = None) -> nn.Module:
    """The model of a config on the meta device, without initialising it.

    Raises:
        AuditError: it cannot be built.
    """
    from transformers.initialization import no_init_weights

    for name, value in fields_of(config):
        last = name.rpartition(".")[2]
        if COUNTS.search(last) and isinstance(value, int) and not 0 <= value <= MOST_COUNT:
            raise AuditError(f"{name} must be between 0 and {MOST_COUNT}; got {value}; correct the config")
    model_class = model_class or _class_of(config)
    config = copy.deepcopy(_part_for(config, model_class))
    for part in configs_in(config):
        if getattr(part, "use_cache", False) is True:
            part.use_cache = False  # not every forward has an argument for it
    try:
        with torch.device("meta"), no_init_weights(), _quiet():
            module = model_class._from_config(config, attn_implementation=None, experts_implementation="batched_mm")
    except Exception as error:  # configs are data: whatever a model's constructor raises is the config's fault here
        raise AuditError(
            f"a config must describe a model that its class can build; {model_class.__name__} refused it "
            f"({type(error).__name__}: {_first_line(error)}); correct the config, or pass the live module"
        ) from error
    if hasattr(module, "tie_weights"):
        with _quiet():
            module.tie_weights()  # left out with the initialisation
    if not isinstance(module, nn.Module):
        raise AuditError(f"a model class must make a module; {model_class.__name__} made a {type(module).__name__}; {REMEDY}")
    return module.eval()


def configs_in(config: Any) -> Iterator[Any]:
    """A config of transformers and all configs inside it, outermost first."""
    yield config
    for name in getattr(config, "sub_configs", None) or ():
        inner = getattr(config, name, None)
        if _is_config(inner):
            yield from configs_in(inner)


def _part_for(config: Any, model_class: Any) -> Any:
    """The config itself, or the one inside it that the class is made for (the text part, for a text-only class)."""
    wanted = getattr(model_class, "config_class", None)
    if isinstance(wanted, type) and not isinstance(config, wanted):
        for inner in configs_in(config):
            if isinstance(inner, wanted):
                return inner
    return config


def _class_of(config: Any) -> Any:
    """The class that the config names, or else the first that transformers lists for it."""
    from transformers.models.auto import modeling_auto

    listed: list[Any] = []
    for head in (*HEADS, ""):
        mapping = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING" if head else "MODEL_MAPPING")
        found = mapping.get(type(config), None)
        listed += [c for c in (found if isinstance(found, tuple | list) else (found,)) if c is not None]
    named = (getattr(config, "architectures", None) or [None])[0]
    for model_class in listed:
        if model_class.__name__ == named:
            return model_class
    if isinstance(named, str):
        import transformers

        found = getattr(transformers, named, None) if named.isidentifier() else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    if not listed:
        raise AuditError(f"a config must be one that transformers has a model for; got {type(config).__name__}; {REMEDY}")
    return listed[0]


def _rebuilder(module: nn.Module, config: Any) -> Callable[[int], nn.Module] | None:
    if not _is_config(config) or not hasattr(type(module), "_from_config"):
        return None

    def rebuild(layers: int) -> nn.Module:
        return build(deepened(config, layers), type(module))

    return rebuild


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
        raise AuditError(f"the number of layers must be a field of the config; {type(config).__name__} has none; {REMEDY}")
    try:
        with _quiet():
            return type(config).from_dict(state)
    except Exception as error:  # a config's own checks raise what they like
        raise AuditError(
            f"{type(config).__name__} must allow {layers} layers; it refused ({_first_line(error)}); {REMEDY}"
        ) from error


# --- configs --------------------------------------------------------------------------------------------------------


def _is_config(value: Any) -> bool:
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(value, transformers.PreTrainedConfig)


def _config_of(name: str) -> Any:
    """The config at a path or of a model id."""
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise AuditError(f"a folder must hold a config.json; {name!r} holds none; name the folder of the checkpoint itself")
    elif not path.is_file():
        looks_local = name.startswith((".", "/", "~")) or name.endswith(".json") or name.count("/") > 1
        if looks_local or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name):
            raise AuditError(f"a path must exist; got {name!r}; name a config.json, or a folder that holds one")
        return _loaded(name, name, hub=True)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AuditError(f"a config must be JSON; {str(path)!r} is not ({_first_line(error)}); {REMEDY}") from error
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
                f"({type(error).__name__}: {_first_line(error)}); repair it, or pass the live module"
            ) from error
    if kind not in CONFIG_MAPPING:
        raise AuditError(
            f"model_type must be known to transformers or to an installed package with the entry point {ENTRY_POINTS!r}; "
            f"{where!r} says {kind!r}, and code of a checkpoint is never run; pass the live module"
        )


def _loaded(source: str, name: str, hub: bool = False) -> Any:
    """The config through transformers' own reader, which fills in defaults and repairs old fields."""
    from transformers import AutoConfig, PreTrainedConfig

    try:
        with _quiet():
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
                f"{_first_line(error)}); check its spelling and the network (HF_HUB_OFFLINE), or name a local folder that "
                "holds its config.json"
            ) from error
        raise AuditError(
            f"a config must be one that transformers accepts; {name!r} was refused ({type(error).__name__}: "
            f"{_first_line(error)}); correct it, or pass the live module"
        ) from error


# --- callables ------------------------------------------------------------------------------------------------------


def _imported(name: str) -> Any:
    """The object that ``package.module:attribute`` names; the working directory counts as a place of modules."""
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the user's code
        raise AuditError(
            f"'package.module:callable' must be importable; {name!r} is not ({type(error).__name__}: {_first_line(error)}); "
            "run from the folder that holds it, or install it"
        ) from error
    finally:
        if added:
            with contextlib.suppress(ValueError):
                sys.path.remove(here)
    return found


def _call(make: Any, name: str) -> nn.Module:
    """The module that a callable returns, on the meta device if it allows that."""
    if isinstance(make, nn.Module):
        return make
    if _is_config(make):
        return build(make)
    if not callable(make):
        raise AuditError(f"a callable that returns a module is needed; {name!r} is a {type(make).__name__}; name a function")
    try:
        with torch.device("meta"):
            module = make()
    except Exception:  # code that looks at numbers cannot run on the meta device; the plain call tells more
        try:
            module = make()
        except Exception as error:
            raise AuditError(
                f"a callable must return a module when called without arguments; {name!r} raised {type(error).__name__}: "
                f"{_first_line(error)}; wrap it in one that does"
            ) from error
    if _is_config(module):
        return build(module)
    if not isinstance(module, nn.Module):
        raise AuditError(f"a callable must return an nn.Module; {name!r} returned a {type(module).__name__}; return the model")
    return module


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no message"
    return text if len(text) <= 300 else f"{text[:297]}..."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No advice from transformers about configs and generation while we build."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
