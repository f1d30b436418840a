"""Write requirements.lock: one exact version of every package, valid for each Python that the project supports.

Run it as `make lock`, which provides uv. The answer starts from the present lock, so that a run changes only what
pyproject.toml or constraints.txt asks for; `make lock UPGRADE=1` looks for newer versions of everything.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"

HEADER = """\
# Written by `make lock`; do not edit. Exact versions of everything, extras and developers' tools included, for
# Python 3.11 to 3.13.
#
# Two things are left out on purpose. The CUDA libraries and Triton: torch's CUDA wheel names their exact versions
# itself, and its CPU wheel needs none of them. Hashes: torch==2.13.0 may be the CPU or the CUDA build, from wherever
# your pip looks, and pip accepts hashes only when every package has them.
"""

# Wanted by the CUDA build of torch only; and by Python in a browser only, where there is no torch.
LEFT_OUT = re.compile(r"^(nvidia-|cuda-|triton\b)|sys_platform == 'emscripten'")


def compile_lock(upgrade: bool) -> list[str]:
    """Ask uv for a resolution and return its lines, without what no CPU needs."""
    command = ["uv", "pip", "compile", "pyproject.toml", "--all-extras", "--constraint", "constraints.txt"]
    command += ["--universal", "--python-version", "3.11", "--fork-strategy", "fewest"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--quiet", "--output-file", str(LOCK)]
    if upgrade:
        command.append("--upgrade")
    subprocess.run(command, cwd=ROOT, check=True)
    lines = LOCK.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#") and not LEFT_OUT.search(line)]


def main() -> int:
    """Write the lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="look for newer versions of everything")
    lines = compile_lock(parser.parse_args().upgrade)
    LOCK.write_text(HEADER + "\n" + "\n".join(lines) + "\n")
    print(f"{LOCK.name}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
