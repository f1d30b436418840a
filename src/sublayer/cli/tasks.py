"""`sublayer compare --index` and `--gather`: parts of a study that another command planned."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click


def take_up(out: Path | None, index: int | None, gather: bool, given: Sequence[str], measure: bool) -> None:
    """Run one run of the study in ``out``, or gather its results.

    The exit status is that of the run; of gathering, 1 while runs are missing.

    Args:
        out: the study's folder.
        index: place of the run in the plan, from 0; None to gather.
        gather: whether to gather.
        given: options that the plan has decided already, and that are refused for that.
        measure: look at every ``+``.
    """
    from sublayer import report
    from sublayer.cli.training import shown
    from sublayer.study import StudyError, gather_study, run_one
    from sublayer.study.files import ranges

    option = "--gather" if gather else "--index"
    if gather and index is not None:
        raise StudyError("--index runs a run and --gather runs none: give one of them")
    if given:
        raise StudyError(f"with {option} the study in --out decides, so leave out {', '.join(given)}")
    if index is not None:
        sys.exit(run_one(out, index, measure=measure))
    study = gather_study(out, command=["sublayer", *sys.argv[1:]], report=report.write)
    shown(study)
    missing = study.missing()
    if missing:
        total = len(study.results["runs"])
        click.echo(f"not finished: {len(missing)} of {total} runs, indexes {ranges(missing)}", err=True)
        sys.exit(1)
