"""Put the record of a finished study beside its file, and write the list of all studies.

    sublayer compare --config studies/depth/study.yaml --out OUT
    python tools/studies.py depth OUT

Copies `results.json`, `README.md`, the figures and `report.html` to `studies/depth/`, with names in place of this
machine's folders (set GLUE where the study did), and writes `studies/README.md` from the records there are. Without
arguments it writes the list only.
"""

import argparse
import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "studies"
FILES = ("results.json", "README.md", "report.html", "figure-*.svg")
HEAD = """# Studies

Questions, the files that say what is run, and what was found. Each folder has `study.yaml`, the record for people
(`README.md`, with the figures) and for programs (`results.json`, schema `sublayer.record/1`), and the page
(`report.html`). Negatives are kept. [How a study is written and run](../docs/studies.md).

Run one again, or go on with one that was interrupted:

    sublayer compare --config studies/NAME/study.yaml --out FOLDER [--resume]

"""


def put(name: str, out: Path) -> None:
    """Copy a record from the folder of a run."""
    target = STUDIES / name
    record = json.loads((out / "results.json").read_text(encoding="utf-8"))
    planned = len((record["config"]).get("parts", []))
    if len(record["parts"]) < planned:
        raise SystemExit(f"{out} has {len(record['parts'])} of {planned} parts: finish it with --resume")
    for pattern in FILES:
        for old in target.glob(pattern):
            old.unlink()
        for path in sorted(out.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            for place, name_of_it in places(out):
                text = text.replace(place, name_of_it)
            (target / path.name).write_text(text, encoding="utf-8")


def places(out: Path) -> list[tuple[str, str]]:
    """Where things lie on this machine, each with what a record says instead."""
    found = [(sysconfig.get_paths()["purelib"], "SITE-PACKAGES"), (str(out.resolve()), "FOLDER"), (str(out), "FOLDER")]
    if os.environ.get("GLUE"):
        found += [(str(Path(os.environ["GLUE"]).resolve()), "$GLUE"), (os.environ["GLUE"], "$GLUE")]
    return found


def listed() -> str:
    """The list of all studies with a record."""
    parts = [HEAD]
    for path in sorted(STUDIES.glob("*/results.json")):
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name = path.parent.name
        minutes = record["seconds"] / 60
        parts.append(f"## [{record['title']}]({name}/README.md)\n\n{record['question']}\n")
        for part in record["parts"]:
            parts += [f"- {verdict}" for verdict in part["verdicts"]]
        parts.append(f"\n{record['created'][:10]}, {minutes:.0f} minutes, {record['machine']['cpu']}.\n")
    return "\n".join(parts)


def main() -> int:
    """Copy one record, if one is named, and write the list."""
    parser = argparse.ArgumentParser(prog="python tools/studies.py", description=__doc__)
    parser.add_argument("name", nargs="?", help="folder under studies/")
    parser.add_argument("out", nargs="?", type=Path, help="folder of the finished study")
    chosen = parser.parse_args()
    if chosen.name:
        if chosen.out is None:
            parser.error("give the folder of the finished study too")
        put(chosen.name, chosen.out)
    (STUDIES / "README.md").write_text(listed(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
