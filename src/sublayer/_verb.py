"""Modules that can be called, so that ``sl.probe(model)`` and ``from sublayer.probe import measures`` both work.

A package and the verb it is for have one name (`sublayer.probe`, `sublayer.cost`). Importing the package anywhere
sets the attribute
``sublayer.probe`` to the module, so the module itself must answer the call.
"""

import sys
from types import ModuleType
from typing import Any


class VerbModule(ModuleType):
    """A module that passes calls on to its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def callable_module(name: str) -> None:
    """Make the module ``name`` callable; its function of the same name answers."""
    sys.modules[name].__class__ = VerbModule
