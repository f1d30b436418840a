"""Print how many files and lines each package has, source and tests side by side, as a Markdown table."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def count(folder: Path, pattern: str = "**/*.py") -> tuple[int, int]:
    """Return (files, lines) of the files under a folder; a file counts as itself."""
    files = [folder] if folder.is_file() else sorted(folder.glob(pattern))
    return len(files), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def main() -> int:
    """Print the table."""
    source, tests = ROOT / "src" / "sublayer", ROOT / "tests"
    packages = sorted(path.name for path in source.iterdir() if (path / "__init__.py").is_file())
    modules = sorted(path.name for path in source.glob("*.py"))
    total = [0, 0, 0, 0]
    print("| package | files | lines | test files | test lines |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in packages + modules:
        # A package is tested by a folder of its name, or, like the modules beside it, by a file at the tests' root.
        test = tests / name if (tests / name).is_dir() else tests / f"test_{name.removesuffix('.py')}.py"
        row = [*count(source / name), *(count(test) if test.exists() else (0, 0))]
        total = [a + b for a, b in zip(total, row, strict=True)]
        print(f"| {name} | " + " | ".join(map(str, row)) + " |")
    files, lines = count(tests)
    rest = files - total[2], lines - total[3]
    print(f"| tests of the whole | | | {rest[0]} | {rest[1]} |")
    print(f"| total | {total[0]} | {total[1]} | {files} | {lines} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
