"""The folder of a study: whose it is, and one process at a time for what concerns the whole. Imports no torch.

Runs have folders of their own with marks of their own, so many processes may each work on one run of a study, as a
cluster's do. Only who runs the whole or gathers the results holds the study's folder.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from sublayer import folders, signed
from sublayer.study.errors import StudyError
from sublayer.study.plan import Plan

PLAN = "plan.json"


def locked(study: Path) -> AbstractContextManager[None]:
    """Hold the study's folder. Raises StudyError if another process works on it."""
    return folders.held(study, StudyError, "on the study in")


def choose(out: str | Path | None, resume: bool) -> Path:
    """The study's folder; without a name the first `sublayer-study`, `sublayer-study-2`, ... that is not there."""
    if out is not None:
        return Path(out)
    folder, number = Path("sublayer-study"), 1
    while folder.exists() and not resume:
        number += 1
        folder = Path(f"sublayer-study-{number}")
    return folder


def _began(folder: Path) -> bool:
    """Whether a study was begun in a folder that has no plan any more."""
    return (folder / "runs").is_dir() or any(folder.glob(f"damaged-{PLAN}-*"))


def check(plan: Plan, folder: Path, resume: bool) -> None:
    """Whether the plan may be run in the folder: it is new, or holds this study and ``resume`` is set.

    Raises:
        StudyError: it may not.
    """
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder} is a file; give a folder for the study")
    if (folder / PLAN).exists() and not resume:
        raise StudyError(f"{folder} holds a study already; pass --resume to go on with it, or give another folder")
    # each run has its settings beside it, so a plan that was lost can be written again
    if signed.read_or_set_aside(folder / PLAN, "and written again from the settings given") is not None:
        changed = Plan.load(folder / PLAN).differences(plan)
        if changed:
            raise StudyError(
                f"the study in {folder} has other settings ({'; '.join(changed)}); give those it began with, or "
                f"another folder"
            )
    elif not folders.is_new(folder) and not (resume and _began(folder)):
        raise StudyError(f"{folder} is not empty and holds no study; give a new folder")


def planned(out: str | Path | None) -> tuple[Path, Plan]:
    """The folder of a study that was begun, and its plan.

    Raises:
        StudyError: there is none.
    """
    if out is None:
        raise StudyError("a run of a study needs the study's folder: give --out FOLDER")
    folder = Path(out)
    if not (folder / PLAN).is_file():
        raise StudyError(
            f"{folder} holds no study ({PLAN} is missing); begin one with `sublayer compare --out {folder}`"
        )
    return folder, Plan.load(folder / PLAN)


def ranges(indexes: Iterable[int]) -> str:
    """Whole numbers in the short form that SLURM reads: `0-3,7`."""
    found: list[list[int]] = []
    for index in sorted(indexes):
        if found and found[-1][1] == index - 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
