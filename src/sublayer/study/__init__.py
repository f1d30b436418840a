"""Studies: plan, run, verdict. Designs x seeds x learning rates, each run in a process of its own. Imports no torch."""

from sublayer.study.errors import StudyError
from sublayer.study.plan import DEFAULT_DESIGNS, Plan, read_config
from sublayer.study.study import Study, run_study, table

__all__ = ["DEFAULT_DESIGNS", "Plan", "Study", "StudyError", "read_config", "run_study", "table"]
