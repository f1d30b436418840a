"""Run the trials, each in a process of its own: `python tools/torture [NAME ...] [--quick] [--out FILE]`."""

import argparse
import ast
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "src"), str(HERE.parent.parent)]

from torture import table  # noqa: E402 - the folder above must be on the path first


def trials() -> dict[str, str]:
    """Name of every trial -> the first line of its module's text. A trial is a file with a function `main`."""
    found = {}
    for path in sorted(HERE.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    """Several trials go through processes of their own; one, named alone, takes the rest of the command line."""
    known = trials()
    if arguments and arguments[0] in known and (len(arguments) < 2 or arguments[1] not in known):
        return int(importlib.import_module(f"torture.{arguments[0]}").main(arguments[1:]))
    listed = "\n".join(f"  {name:12} {text}" for name, text in known.items())
    parser = argparse.ArgumentParser(
        prog="python tools/torture",
        description=__doc__,
        epilog=f"trials:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="trials to run; default: all")
    parser.add_argument("--list", action="store_true", help="list the trials and end")
    parser.add_argument("--quick", action="store_true", help="the short form of each")
    parser.add_argument("--out", type=Path, help="JSON record of all of them")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"no trial is called {', '.join(unknown)}; there are {', '.join(known)}")
    if given.list:
        print(listed)
        return 0
    records: list[dict[str, Any]] = []
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in given.names or known:
            out = Path(folder) / f"{name}.json"
            command = [sys.executable, str(HERE), name, "--out", str(out), *(["--quick"] if given.quick else [])]
            print(f"{name} ...", flush=True)
            code = subprocess.run(command, check=False).returncode
            if out.exists():
                records.append(json.loads(out.read_text(encoding="utf-8")))
            else:
                records.append(table.lost(name, f"ended with status {code} and without a record"))
            worst = worst or code
    print("\n" + table.text([table.Line(**line) for record in records for line in record["lines"]]))
    if given.out is not None:
        table.write(given.out, {"schema": table.SCHEMA, "trials": records})
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
