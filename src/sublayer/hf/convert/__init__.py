"""Change the wiring of a model and keep what can be kept: parameters go by role from one equation to the other."""

from sublayer.hf.convert.defects import DefectMap, LayerDefect, defect_map, to_parallel
from sublayer.hf.convert.errors import ConvertError
from sublayer.hf.convert.measure import FunctionChange, measure_change
from sublayer.hf.convert.mixing import mixed, read_layers, wanted
from sublayer.hf.convert.parallel import parallel_design, serial_branches
from sublayer.hf.convert.rewire import Conversion, rewire
from sublayer.hf.convert.sample import Sample, own_text, sample, tokenizer_of
from sublayer.hf.convert.table import Fate
from sublayer.hf.convert.weights import Origin

__all__ = [
    "Conversion",
    "ConvertError",
    "DefectMap",
    "Fate",
    "FunctionChange",
    "LayerDefect",
    "Origin",
    "Sample",
    "defect_map",
    "measure_change",
    "mixed",
    "own_text",
    "parallel_design",
    "read_layers",
    "rewire",
    "sample",
    "serial_branches",
    "to_parallel",
    "tokenizer_of",
    "wanted",
]
