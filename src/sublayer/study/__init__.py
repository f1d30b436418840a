"""Studies: plan, run, verdict. Designs x seeds x learning rates, each run in a process of its own. Imports no torch."""

from sublayer.study.errors import StudyError
from sublayer.study.plan import DEFAULT_DESIGNS, Plan, read_config
from sublayer.study.program import Program, is_program, run_program
from sublayer.study.study import Study, gather_study, run_one, run_study, table

__all__ = [
    "DEFAULT_DESIGNS",
    "Plan",
    "Program",
    "Study",
    "StudyError",
    "gather_study",
    "is_program",
    "read_config",
    "run_one",
    "run_program",
    "run_study",
    "table",
]
