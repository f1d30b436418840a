"""The tensors that transformers' own model of a config has: what a checkpoint must hold."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from sublayer.hf.errors import CheckpointError

# Our name of a head -> transformers' list of the model classes that have it, and ours.
HEADS = {
    "causal-lm": ("MODEL_FOR_CAUSAL_LM_MAPPING", "SublayerForCausalLM"),
    "masked-lm": ("MODEL_FOR_MASKED_LM_MAPPING", "SublayerForMaskedLM"),
    "sequence-classification": (
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
        "SublayerForSequenceClassification",
    ),
    "none": ("MODEL_MAPPING", "SublayerModel"),
}
# The ends of class names, as config.json names them, and the head that each has. Of a class with several heads, the
# language head.
_ENDINGS = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "masked-lm",
    "ForSequenceClassification": "sequence-classification",
    "Model": "none",
}


@dataclass(frozen=True)
class Schema:
    """Names and shapes.

    Attributes:
        shapes: of every tensor that is stored: parameters and persistent buffers, tied ones once.
        tied: name of a tied tensor -> name of the one that is stored for it.
        has_head: whether the model is a base model with a head on it.
        architecture: name of transformers' class.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    has_head: bool
    architecture: str

    def stored(self, name: str) -> str:
        """The name under which a tensor's numbers are stored."""
        return self.tied.get(name, name)


def head_of(architectures: list[str] | None, head: str | None) -> str:
    """Which head to load: the one asked for, or the one that a config's architectures name.

    Raises:
        CheckpointError: there is no such head here.
    """
    known = ", ".join(HEADS)
    if head is not None:
        if head not in HEADS:
            raise CheckpointError(f"head ({head!r}) must be one of {known}: choose one of them")
        return head
    named = (architectures or [""])[0]
    for ending, found in _ENDINGS.items():
        if named.endswith(ending):
            return found
    raise CheckpointError(
        f"architectures ({named or None!r}) names no model with a head that is loaded here: give head=, one of "
        f"{known}; 'none' loads the model below the head"
    )


def schema_of(config: PreTrainedConfig, head: str) -> Schema:
    """What transformers stores for a config with one of our heads.

    Raises:
        CheckpointError: transformers has no such model for the config, or cannot build it.
    """
    model_class = _class_for(config, head)
    try:
        with torch.device("meta"), no_init_weights(), quiet():
            # of a copy, since the model writes its attention backend into its config
            model = model_class._from_config(copy.deepcopy(config), attn_implementation="eager")
    except Exception as error:  # whatever a constructor raises, the config is at fault
        raise CheckpointError(
            f"a config must describe a model that transformers can build; {model_class.__name__} raised "
            f"{type(error).__name__} ({error}): correct config.json"
        ) from error
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}
    return Schema(shapes, tied, head != "none", model_class.__name__)


def _class_for(config: PreTrainedConfig, head: str) -> Any:
    found = getattr(modeling_auto, HEADS[head][0]).get(type(config), None)
    if isinstance(found, tuple | list):
        found = found[0] if found else None
    if found is None:
        raise CheckpointError(
            f"transformers has no model for {config.model_type} with the head {head!r}: choose another head="
        )
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' remarks about a model that is only built to be looked at."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
