"""A study made of parts: a question, a file that says what is run, and the record of what was found. Imports no torch.

    title: Norm placement against depth
    question: Which placements train at which depth?
    parts:
      - kind: train
        designs: [post-norm, input-norm]
        seeds: [0, 1, 2]
        grid: {layers: [6, 12, 24], warmup: [0, 0.1]}

`sublayer compare --config study.yaml --out FOLDER` runs it; the same command with `--resume` goes on after an
interruption. Each part has a folder `parts/NAME`, and its result in `parts/NAME/result.json`; `results.json` is the
record of all, `report.html` and `README.md` show it.
"""

import contextlib
import datetime
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from sublayer import signed
from sublayer.folders import is_new
from sublayer.folders import make as make_folder
from sublayer.streams import STDERR
from sublayer.study.errors import StudyError
from sublayer.study.files import locked
from sublayer.study.parts import Part, Result, Setting, make
from sublayer.study.plan import read_yaml
from sublayer.study.results import machine
from sublayer.train.frame import versions
from sublayer.whole_files import write_atomically

SCHEMA = "sublayer.record/1"
PROGRAM, RECORD, RESULT, SPENT = "program.json", "results.json", "result.json", "seconds.json"
Json = dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A study of parts, read and checked.

    Attributes:
        title, question: what the record is headed with.
        parts: in the order in which they run; a later one may build on an earlier one.
        config: the file as it was read.
    """

    title: str
    question: str
    parts: tuple[Part, ...]
    config: Json

    @classmethod
    def load(cls, path: Path) -> "Program":
        """Read a study's file.

        Raises:
            StudyError, DesignError, TrainError: something in it does not fit; nothing has been run then.
        """
        data = read_yaml(path)
        for key in data:
            if key not in ("title", "question", "parts"):
                raise StudyError(
                    f"a study of parts has title, question and parts, and {path} has {key!r}: move it into a part"
                )
        title, question, parts = data.get("title"), data.get("question"), data.get("parts")
        if not isinstance(title, str) or not isinstance(question, str) or not isinstance(parts, list) or not parts:
            raise StudyError(f"{path} must give title and question, both text, and a list of parts")
        made: list[Part] = []
        for number, settings in enumerate(parts, 1):
            made.append(make(settings, number, path.resolve().parent, [p.name for p in made]))
        return cls(title.strip(), " ".join(question.split()), tuple(made), data)

    def sha256(self) -> str:
        """Hash of the file's content."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode()).hexdigest()


def is_program(path: Path) -> bool:
    """Whether a study's file is made of parts."""
    return "parts" in read_yaml(path)


def run_program(
    program: Program,
    out: str | Path,
    *,
    jobs: int | None = None,
    resume: bool = False,
    output: IO[str] | None = STDERR,
    command: Sequence[str] = (),
    page: Callable[[dict[str, Any], Path, Path], None] | None = None,
    write: Callable[[dict[str, Any], Path], None] | None = None,
) -> Json:
    """Run every part that is not finished, and write the record, also after each part.

    Args:
        program: what to run.
        out: folder of the study.
        jobs: processes at once.
        resume: go on with the study in ``out``.
        output: where progress is shown, or None.
        command: the command line to record.
        page: writes the page of a training study; `sublayer.report.write`.
        write: writes the record's page; `sublayer.report.write_record`.

    Returns:
        The record, as in `results.json`.
    """
    folder = Path(out)
    _check(program, folder, resume)
    results: dict[str, Result] = {}
    folders = {part.name: folder / "parts" / part.name for part in program.parts}
    record: Json = {}
    with locked(make_folder(folder, StudyError)):
        _check(program, folder, resume)  # another process may have begun a study here meanwhile
        signed.write(folder / PROGRAM, {"sha256": program.sha256(), "config": program.config})
        for part in program.parts:
            place = folders[part.name]
            found = _read_result(place)
            if found is None:
                place.mkdir(parents=True, exist_ok=True)
                with _clocked(place / SPENT):
                    found = part.run(Setting(place, jobs, output, dict(results), dict(folders), page))
                found.facts.setdefault("seconds", _spent(place / SPENT))
                signed.write(place / RESULT, asdict(found), indent=1)
            results[part.name] = found
            record = _record(program, results, command or _call(folder))
            signed.write(folder / RECORD, record, indent=1)
            if write is not None:
                write(record, folder)
    return record


def _spent(file: Path) -> float:
    """Seconds that a part has taken so far, over all calls."""
    try:
        return round(sum(json.loads(file.read_text(encoding="utf-8"))), 1)
    except (OSError, ValueError, TypeError):
        return 0.0


@contextlib.contextmanager
def _clocked(file: Path) -> Iterator[None]:
    """Add what passes inside to the seconds that a part has taken, also when it is interrupted."""
    before, begun = _spent(file), time.monotonic()
    try:
        yield
    finally:
        write_atomically(file, json.dumps([before, round(time.monotonic() - begun, 1)]) + "\n")


def read_record(folder: Path) -> Json:
    """The record of a study that was run before."""
    try:
        record = signed.read(folder / RECORD)
    except signed.Damaged as error:
        raise StudyError(f"{error}; `sublayer compare --resume` writes it again") from None
    except OSError as error:
        raise StudyError(f"{folder / RECORD} holds no record of a study: {error}") from None
    if record.get("schema") != SCHEMA:
        raise StudyError(f"{folder / RECORD} must have schema {SCHEMA!r}")
    return record


def summary(record: Mapping[str, Any]) -> str:
    """The verdicts as text for a terminal."""
    lines = [str(record["title"]), ""]
    for part in record["parts"]:
        lines += [f"{part['name']}: {verdict}" for verdict in part["verdicts"]]
    return "\n".join(lines)


def _record(program: Program, results: Mapping[str, Result], command: Sequence[str]) -> Json:
    kinds = {part.name: part.kind for part in program.parts}
    parts = [
        {"name": name, "kind": kinds[name], "folder": f"parts/{name}", **asdict(result)}
        for name, result in results.items()
    ]
    rows = [run for result in results.values() for run in result.details.get("runs", [])]
    return {
        "schema": SCHEMA,
        "title": program.title,
        "question": program.question,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions(),
        "machine": machine([*rows, *(result.facts for result in results.values())]),
        "config": json.loads(json.dumps(program.config, default=str)),
        "config_sha256": program.sha256(),
        "seconds": round(sum(result.facts.get("seconds", 0) for result in results.values()), 1),
        "parts": parts,
        "verdict": " ".join(verdict for result in results.values() for verdict in result.verdicts),
    }


def _read_result(place: Path) -> Result | None:
    """What a finished part wrote at its end; None, with a warning, where that was damaged since."""
    try:
        found = signed.read_or_set_aside(place / RESULT, "and the part is run again")
        return None if found is None else Result(**found)
    except (OSError, TypeError):
        return None


def _check(program: Program, folder: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder} is a file; give a folder for the study")
    if (folder / PROGRAM).exists():
        if not resume:
            raise StudyError(f"{folder} holds a study already; pass --resume to go on with it, or give another folder")
        try:
            kept = signed.read(folder / PROGRAM).get("sha256")
        except (OSError, signed.Damaged) as error:
            raise StudyError(f"{folder / PROGRAM} cannot be read ({error}): give another folder") from None
        if kept != program.sha256():
            raise StudyError(f"the study in {folder} was begun from another file: give that one, or another folder")
    elif not is_new(folder):
        raise StudyError(f"{folder} is not empty and holds no study; give a new folder")


def _call(folder: Path) -> list[str]:
    return ["sublayer", "compare", "--config", "study.yaml", "--out", str(folder)]
