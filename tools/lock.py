"""Write requirements.lock: one exact version of every package with the hashes of its files, valid for each Python that
the project supports; and requirements-cuda.lock, what PyTorch's CUDA build wants besides.

Run it as `make lock`, which provides uv. The answer starts from the present locks, so that a run changes only what
pyproject.toml or constraints.txt asks for; `make lock UPGRADE=1` looks for newer versions of everything.

The hashes are those of PyPI. PyTorch's CPU builds are not there: theirs are in tools/torch_cpu.sha256, from the index
at https://download.pytorch.org/whl/cpu/torch/, and have to be brought up to date when torch is.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_LOCKED = {"fuzz", "ray"}  # extras that no check of ours needs, and that are heavy or not for every Python
LOCK, CUDA = ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"
CPU_BUILDS = ROOT / "tools" / "torch_cpu.sha256"  # as sha256sum writes it

HEADER = """\
# Written by `make lock`; do not edit. Exact versions of everything, developers' tools and all extras but fuzz and ray
# included, for Python 3.11 to 3.13, with the hashes of their files on PyPI and of PyTorch's CPU builds. It is complete:
# install it with --no-deps. PyTorch's CUDA build wants requirements-cuda.lock besides.
"""
HEADER_CUDA = """\
# Written by `make lock`; do not edit. What PyTorch's CUDA build wants besides requirements.lock; its CPU build wants
# none of it.
"""

# Wanted by the CUDA build of torch only.
OF_CUDA = re.compile(r"^(nvidia-|cuda-|triton\b)")
# Wanted by Python in a browser only, where there is no torch.
LEFT_OUT = re.compile(r"sys_platform == 'emscripten'")
HASH = "    --hash=sha256:"


def entries(text: str) -> list[list[str]]:
    """The packages of a lock: for each its requirement, and its hashes sorted."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line[0].isspace():
            found[-1].append(line.strip().removesuffix("\\").strip().removeprefix("--hash=sha256:"))
        else:
            found.append([line.removesuffix("\\").strip()])
    return [[first, *sorted(hashes)] for first, *hashes in found]


def compile_lock(upgrade: bool) -> list[list[str]]:
    """Ask uv for a resolution and return its packages."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lock"
        file.write_text("".join(path.read_text() for path in (LOCK, CUDA) if path.exists()))  # where it starts from
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = [word for name in project["optional-dependencies"] if name not in NOT_LOCKED
                  for word in ("--extra", name)]  # fmt: skip
        command = ["uv", "pip", "compile", "pyproject.toml", *extras, "--constraint", "constraints.txt"]
        command += ["--universal", "--python-version", "3.11", "--fork-strategy", "fewest", "--generate-hashes"]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--quiet", "--output-file", str(file)]
        if upgrade:
            command.append("--upgrade")
        subprocess.run(command, cwd=ROOT, check=True)
        return entries(file.read_text())


def with_cpu_builds(packages: list[list[str]]) -> list[list[str]]:
    """The same, with the hashes of PyTorch's CPU builds beside those of its other ones.

    Raises:
        SystemExit: the CPU builds that are known are those of another version.
    """
    lines = [line.split() for line in CPU_BUILDS.read_text().splitlines()]
    for package in packages:
        if package[0].startswith("torch=="):
            version = package[0].removeprefix("torch==").split()[0]
            other = [name for _, name in lines if not name.startswith(f"torch-{version}+cpu-")]
            if other:
                raise SystemExit(
                    f"torch is {version}, and {CPU_BUILDS.relative_to(ROOT)} has {other[0]}: write into it the hashes "
                    "that https://download.pytorch.org/whl/cpu/torch/ gives for this version"
                )
            package[1:] = sorted({*package[1:], *(digest for digest, _ in lines)})
    return packages


def written(packages: list[list[str]]) -> str:
    """Packages as pip reads them."""
    return "".join(" \\\n".join([first, *(HASH + digest for digest in hashes)]) + "\n" for first, *hashes in packages)


def main() -> int:
    """Write the locks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="look for newer versions of everything")
    packages = with_cpu_builds(compile_lock(parser.parse_args().upgrade))
    packages = [package for package in packages if not LEFT_OUT.search(package[0])]
    for file, header, chosen in (
        (LOCK, HEADER, [package for package in packages if not OF_CUDA.search(package[0])]),
        (CUDA, HEADER_CUDA, [package for package in packages if OF_CUDA.search(package[0])]),
    ):
        file.write_text(f"{header}\n{written(chosen)}")
        print(f"{file.name}: {len(chosen)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
