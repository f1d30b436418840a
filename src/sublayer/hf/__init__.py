"""Checkpoints of Hugging Face transformers in and out: each family is data, applied by one mechanism both ways."""

from sublayer.hf.errors import CheckpointError
from sublayer.hf.exporting import Exported, export
from sublayer.hf.families import FAMILIES
from sublayer.hf.loading import Kept, load

__all__ = ["FAMILIES", "CheckpointError", "Exported", "Kept", "export", "load"]
