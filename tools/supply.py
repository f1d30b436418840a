"""What the project is built from: hashes in the locks, licences of what is installed, known weaknesses of it.

    python tools/supply.py [--out build/supply.json]

Every package of the locks has an exact version and hashes. Every package that is installed has a licence of the list
below: permissive ones, and weak copyleft ones (LGPL, MPL), which ask nothing of a program that imports the package.
`pip-audit` looks for known weaknesses in the lock's versions where PyPI's database can be reached, and where it cannot
this says so. The exit status is 1 if anything is not as it should be.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from lock import CUDA, LOCK, entries, written

ALLOWED = {
    # SPDX names
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "HPND", "ISC", "LGPL-2.1-or-later", "LGPL-3.0-only", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0",
    "Python-2.0", "Unlicense", "Zlib",
    # names of PyPI's classifiers, and what some packages say themselves
    "3-Clause BSD License", "Apache 2.0 License", "Apache Software License", "BSD License",
    "GNU Lesser General Public License v2 or later (LGPLv2+)", "ISC License (ISCL)", "MIT License",
    "Mozilla Public License 2.0 (MPL 2.0)", "Python Software Foundation License", "The MIT License (MIT)",
}  # fmt: skip
NO_LICENCE = {"DFSG approved"}  # classifiers that say something about a licence and name none
DATABASE = "https://pypi.org/pypi/pip/json"


def unhashed() -> list[str]:
    """Packages of the locks without an exact version or without a hash."""
    found = [package for file in (LOCK, CUDA) for package in entries(file.read_text(encoding="utf-8"))]
    return [
        first
        for first, *hashes in found
        if not re.fullmatch(r"[\w.-]+==[\w.]+( ;.*)?", first)
        or not hashes
        or not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes)
    ]


def licences(text: str) -> set[str]:
    """The licences that a package names; of one that gives the whole text its first line."""
    first = text.strip().splitlines()[0] if text.strip() else "UNKNOWN"
    named = {each.strip(" ()") if each.count("(") != each.count(")") else each.strip()
             for each in re.split(r"; | AND | OR ", first)}  # fmt: skip
    return named - NO_LICENCE


def not_allowed() -> tuple[int, list[str]]:
    """How many packages are installed, and those with a licence that is not on the list."""
    command = [str(Path(sys.executable).parent / "pip-licenses"), "--from=mixed", "--format=json"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    odd = [
        f"{package['Name']} {package['Version']}: {name}"
        for package in packages
        for name in sorted(licences(package["License"]) - ALLOWED) or ([] if licences(package["License"]) else ["-"])
    ]
    return len(packages), odd


def reachable() -> bool:
    """Whether PyPI's database of weaknesses answers."""
    try:
        with urllib.request.urlopen(DATABASE, timeout=10) as answer:
            return "vulnerabilities" in json.load(answer)
    except (OSError, ValueError):
        return False


def weaknesses() -> tuple[str, list[dict[str, Any]]]:
    """What pip-audit says: how it went in words, and the packages with known weaknesses."""
    if not reachable():
        return "not looked for: PyPI's database cannot be reached from here", []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lock.txt"
        file.write_text(written(entries(LOCK.read_text(encoding="utf-8"))), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(file), "--disable-pip", "--require-hashes",
                   "--format", "json", "--progress-spinner", "off"]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not done.stdout.strip():
        return f"not looked for: pip-audit ended with {done.returncode}: {done.stderr.strip()[-400:]}", []
    packages = json.loads(done.stdout)["dependencies"]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    how = f"{len(packages) - len(unknown)} packages looked up"
    how += f", {len(unknown)} that the database does not have from here" if unknown else ""
    return how, [each for each in packages if each.get("vulns")]


def main() -> int:
    """Look at all three, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON record")
    given = parser.parse_args()
    bare = unhashed()
    installed, odd = not_allowed()
    how, weak = weaknesses()
    print(f"hashes: {len(bare)} packages of the locks without one" + "".join(f"\n  {each}" for each in bare))
    print(f"licences: {installed} packages installed, {len(odd)} with one that is not allowed")
    for each in odd:
        print(f"  {each} (look at it; add it to tools/supply.py if it may be used)")
    print(f"weaknesses: {how}")
    for package in weak:
        told = ", ".join(f"{one['id']} (mended in {', '.join(one['fix_versions']) or 'no version'})"
                         for one in package["vulns"])  # fmt: skip
        print(f"  {package['name']} {package['version']}: {told}; raise it with `make lock UPGRADE=1`")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        record = {"schema": "sublayer.supply/1", "unhashed": bare, "installed": installed, "licences_not_allowed": odd,
                  "weaknesses": how, "weak": weak}  # fmt: skip
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(bool(bare or odd or weak))


if __name__ == "__main__":
    sys.exit(main())
