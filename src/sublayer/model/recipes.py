"""The configurations of the recipes (`sublayer.recipes`): published models by name, where the catalogue has equations.

The word SAF is that of the PAF paper (2305.13297) for the serial wiring.
"""

from typing import Any

from sublayer import recipes as files
from sublayer.model.config import SublayerConfig


def recipes() -> tuple[str, ...]:
    """The names of all recipes."""
    return files.names()


def recipe(name: str, **changes: Any) -> SublayerConfig:
    """The configuration of a published model.

    Args:
        name: one of :func:`recipes`, or the path of a recipe's file.
        changes: settings of `SublayerConfig` in place of the recipe's, such as ``num_hidden_layers=2`` for a trial.

    Raises:
        RecipeError: there is no such recipe, or it breaks a rule.
        ValueError: a setting breaks a rule.
    """
    return SublayerConfig(**{**files.load(name).model, **changes})
