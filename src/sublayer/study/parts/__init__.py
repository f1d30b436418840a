"""What a study file may be made of: each part is of a kind, runs in a folder of its own, and is resumed from there."""

from sublayer.study.parts.part import KINDS, Part, Result, Setting, make

__all__ = ["KINDS", "Part", "Result", "Setting", "make"]
