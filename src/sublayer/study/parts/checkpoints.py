"""Which checkpoints a part starts from: folders, Hub ids, files of an installed package, or what an earlier part made.
Imports no torch."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

from sublayer.study.errors import StudyError
from sublayer.study.parts.part import Part, Setting

MADE = "checkpoints"  # in a result's details: label -> folder, relative to the part's


def named(given: str, here: Path) -> str:
    """The checkpoint that a study's file names: ``package:NAME/SUB/FOLDER`` of an installed package, a folder
    (relative to the file, ``$VARIABLES`` filled in), or else a Hub id."""
    if given.startswith("package:"):
        package, _, inside = given.removeprefix("package:").partition("/")
        try:
            return str(Path(str(resources.files(package))) / inside)
        except ModuleNotFoundError:
            raise StudyError(
                f"{given} is a file of the package {package}, which is not installed: install it"
            ) from None
    path = here / os.path.expandvars(given)
    return str(path.resolve()) if path.exists() else given


def folder_of(given: str, here: Path, part: str) -> str:
    """A folder of data that a study's file names, ``$VARIABLES`` filled in."""
    filled = os.path.expandvars(given)
    if "$" in filled:
        name = filled[filled.index("$") + 1 :].split("/")[0].strip("{}")
        raise StudyError(f"data of part {part!r} is {given}, and {name} is not set: set it to the folder of the data")
    path = here / filled
    if not path.exists():
        raise StudyError(f"data of part {part!r} is {given}, and {path} does not exist: give a folder that does")
    return str(path.resolve())


def gathered(part: Part, at: Setting) -> dict[str, str]:
    """Label -> checkpoint of everything a part starts from: its own ``checkpoints`` first, then those of the parts
    in ``of``."""
    found = {label: named(str(given), part.here) for label, given in (part.settings.get("checkpoints") or {}).items()}
    for name in part.settings.get("of") or []:
        made: dict[str, Any] = at.earlier[name].details.get(MADE, {})
        for label, folder in made.items():
            path = at.folders[name] / folder
            if not path.exists():
                raise StudyError(f"part {name!r} lists the checkpoint {path}, which is not there: run it again")
            found[label] = str(path.resolve())
    if not found:
        raise StudyError(f"part {part.name!r} has nothing to start from: give checkpoints, or of: [an earlier part]")
    return found


def check_sources(part: Part) -> None:
    """Raise StudyError where ``checkpoints`` or ``of`` are not what they must be."""
    own, of = part.settings.get("checkpoints") or {}, part.settings.get("of") or []
    if not isinstance(own, dict) or not all(isinstance(v, str) for v in own.values()):
        raise StudyError(f"checkpoints of part {part.name!r} give a folder or a Hub id to each name, got {own!r}")
    if not isinstance(of, list) or not all(isinstance(name, str) for name in of):
        raise StudyError(f"of in part {part.name!r} is a list of earlier parts, got {of!r}")
    if not own and not of:
        raise StudyError(f"part {part.name!r} has nothing to start from: give checkpoints, or of: [an earlier part]")
