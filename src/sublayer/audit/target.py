"""What is audited: a live module, or one built without weights from a config, a checkpoint's name or a callable."""

import contextlib
import copy
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from sublayer.audit.configs import REMEDY, config_of, configs_in, deepened, first_line, is_config, quiet
from sublayer.audit.inputs import Inputs, attempts, given
from sublayer.audit.result import AuditError
from sublayer.audit.sizes import fields_of

MOST_COUNT = 100_000  # layers, experts or heads: more is a slip, and building them would take for ever
COUNTS = re.compile(r"^(num|n)_.*(layers?|experts|heads?|blocks)$|^(depth|(en|de)coder_layers|n_layers?|n_heads?)$")
# Heads in the order in which one is looked for where a config names none: what makes text first.
HEADS = (
    "CAUSAL_LM SEQ_TO_SEQ_CAUSAL_LM MASKED_LM IMAGE_TEXT_TO_TEXT IMAGE_CLASSIFICATION SPEECH_SEQ_2_SEQ CTC "
    "AUDIO_CLASSIFICATION VIDEO_CLASSIFICATION MASKED_IMAGE_MODELING"
).split()


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
            ``package.module:callable``; a model id of the Hugging Face Hub; a callable that returns a module. No
            weights are read and no code of a checkpoint is run.
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
            config = config_of(name)
            module = build(config)
    elif is_config(target):
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
            f"({type(error).__name__}: {first_line(error)}); pass inputs=..."
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
    held: list[Any] = [getattr(m, "config", None) for m, *_ in parts]
    configs: dict[int, Any] = {id(c): c for c in held if is_config(c)}
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
            m._buffers.clear()
            m._buffers.update(buffers)
            m._modules.clear()
            m._modules.update(modules)


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
        with torch.device("meta"), _numbers_kept(), no_init_weights(), quiet():
            module = model_class._from_config(config, attn_implementation=None, experts_implementation="batched_mm")
    except Exception as error:  # configs are data: whatever a model's constructor raises is the config's fault here
        raise AuditError(
            f"a config must describe a model that its class can build; {model_class.__name__} refused it "
            f"({type(error).__name__}: {first_line(error)}); correct the config, or pass the live module"
        ) from error
    if hasattr(module, "tie_weights"):
        with quiet():
            module.tie_weights()  # left out with the initialisation
    if not isinstance(module, nn.Module):
        raise AuditError(
            f"a model class must make a module; {model_class.__name__} made a {type(module).__name__}; {REMEDY}"
        )
    return module.eval()


def _part_for(config: Any, model_class: Any) -> Any:
    """The config itself, or the one inside it that the class is made for (the text part, for a text-only class)."""
    wanted = getattr(model_class, "config_class", None)
    if isinstance(wanted, type) and not isinstance(config, wanted):
        for inner in configs_in(config):
            if isinstance(inner, wanted):
                return inner
    return config


@contextlib.contextmanager
def _numbers_kept() -> Iterator[None]:
    """Single numbers that a constructor makes (the embedding's scale) stay: on the meta device they are lost."""
    made = torch.tensor

    def tensor(data: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(data, int | float) and "device" not in kwargs:
            kwargs["device"] = "cpu"
        return made(data, *args, **kwargs)

    with mock.patch.object(torch, "tensor", tensor):
        yield


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
        raise AuditError(
            f"a config must be one that transformers has a model for; got {type(config).__name__}; {REMEDY}"
        )
    return listed[0]


def _rebuilder(module: nn.Module, config: Any) -> Callable[[int], nn.Module] | None:
    if not is_config(config) or not hasattr(type(module), "_from_config"):
        return None

    def rebuild(layers: int) -> nn.Module:
        return build(deepened(config, layers), type(module))

    return rebuild


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
            f"'package.module:callable' must be importable; {name!r} is not ({type(error).__name__}: "
            f"{first_line(error)}); run from the folder that holds it, or install it"
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
    if is_config(make):
        return build(make)
    if not callable(make):
        raise AuditError(
            f"a callable that returns a module is needed; {name!r} is a {type(make).__name__}; name a function"
        )
    try:
        with torch.device("meta"):
            module = make()
    except Exception:  # code that looks at numbers cannot run on the meta device; the plain call tells more
        try:
            module = make()
        except Exception as error:
            raise AuditError(
                f"a callable must return a module when called without arguments; {name!r} raised "
                f"{type(error).__name__}: {first_line(error)}; wrap it in one that does"
            ) from error
    if is_config(module):
        return build(module)
    if not isinstance(module, nn.Module):
        raise AuditError(
            f"a callable must return an nn.Module; {name!r} returned a {type(module).__name__}; return the model"
        )
    return module
