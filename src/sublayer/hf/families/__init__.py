"""The families of checkpoints, as data."""

from sublayer.hf.families import encoders, gpts, llamas, neox
from sublayer.hf.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family for group in (encoders, gpts, neox, llamas) for family in group.FAMILIES
}
