"""What is shipped is whole: the wheel has every file, the lock fits the metadata, versions agree."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import sublayer

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(name: str) -> dict[str, Requirement]:
    """Return the requirements of a file of pins by normal name."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line.removesuffix("\\")) for line in lines if line and line[0] not in "# "]
    return {re.sub(r"[-_.]+", "-", one.name).lower(): one for one in found}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cuda.lock"])
def test_the_lock_pins_exactly(name: str) -> None:
    for pin in requirements(name).values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is not an exact version"
        assert pin.url is None
    packages = re.split(r"\n(?=[^ #\n])", (ROOT / name).read_text(encoding="utf-8"))[1:]
    assert len(packages) == len(requirements(name))
    for package in packages:
        first, *hashes = package.strip().split(" \\\n    --hash=sha256:")
        assert hashes, f"{first} has no hash"
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes), first


def test_the_lock_knows_the_builds_of_torch_for_cpus() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    version = str(requirements("requirements.lock")["torch"].specifier).removeprefix("==")
    builds = [line.split() for line in (ROOT / "tools/torch_cpu.sha256").read_text(encoding="utf-8").splitlines()]
    assert {re.search(r"cp3(\d+)-", name)[1] for _, name in builds} == {"11", "12", "13"}  # type: ignore[index]
    for digest, name in builds:
        assert name.startswith(f"torch-{version}+cpu-")
        assert digest in lock


def test_the_lock_fits_the_metadata() -> None:
    lock = requirements("requirements.lock")
    # Ray's version is that of the cluster, so the lock need not have one
    extras = {name: each for name, each in PROJECT["optional-dependencies"].items() if name not in ("fuzz", "ray")}
    wanted = [
        Requirement(text) for text in [*PROJECT["dependencies"], *(one for each in extras.values() for one in each)]
    ]
    wanted += requirements("constraints.txt").values()
    for need in wanted:
        pin = lock[need.name.lower()]
        assert str(pin.specifier).removeprefix("==") in need.specifier, f"{pin} does not fit {need}"
    assert "setuptools" in lock, "the package is installed without build isolation"


def test_every_import_is_declared() -> None:
    declared = {Requirement(text).name.lower().replace("-", "_") for text in PROJECT["dependencies"]}
    extras = [text for name in ("frames", "glue") for text in PROJECT["optional-dependencies"][name]]
    declared |= {Requirement(text).name.lower().replace("-", "_") for text in extras}
    distributions = {"yaml": "pyyaml", "_typeshed": None, "sklearn": "scikit_learn"}
    imported: dict[str, str] = {}
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported.update({name.partition(".")[0]: file.name for name in names})
    foreign = imported.keys() - sys.stdlib_module_names - {"sublayer"}
    wanted = {distributions.get(name, name) for name in foreign} - {None}
    assert wanted <= declared, {name: imported.get(name) for name in wanted - declared}


def test_no_address_of_a_registry_is_written_down() -> None:
    # Where packages come from is the affair of whoever installs them.
    for name in [
        "requirements.lock",
        "requirements-cuda.lock",
        "constraints.txt",
        "pyproject.toml",
        "Makefile",
        "tools/make_venv.sh",
        ".ci/run",
    ]:
        assert not re.search(
            r"https?://|--(extra-)?index-url[ =]\S*/|--find-links (?!\"\$fetched\")", (ROOT / name).read_text()
        ), name


def test_supported_pythons_agree() -> None:
    minors = [int(found) for found in re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["classifiers"]))]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [minor for minor in range(30) if f"3.{minor}" in supported] == minors
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert [int(found) for found in re.findall(r'"3\.(\d+)"', workflow)] == minors
    setup = (ROOT / "tools/make_venv.sh").read_text(encoding="utf-8")
    assert f"(3, {minors[0]}) <= sys.version_info[:2] < (3, {minors[-1] + 1})" in setup


def test_versions_agree() -> None:
    version = sublayer.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_wheel_has_every_file(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    # Built from a copy: the build writes into the tree that it builds from.
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not tracked:
        pytest.skip("not a git checkout, so it cannot be told which files belong to the package")
    copy = tmp_path / "copy"
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    package = {name.removeprefix("src/") for name in tracked.split("\0") if name.startswith("src/sublayer/")}
    assert package <= shipped
    assert f"sublayer-{sublayer.__version__}.dist-info/licenses/LICENSE" in shipped
