"""Start-up is light: what only reads an equation never waits for torch."""

import json
import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "transformers", "numpy", "pandas", "datasets", "tokenizers", "accelerate", "sklearn"}
SHOW = "import sys; sys.argv = ['sublayer', 'show', 'post-norm']; import sublayer.cli; sublayer.cli.main()"


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that are loaded once `code` has run, or has left by SystemExit."""
    program = (
        "import json, sys\n"
        f"try:\n    exec({code!r})\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "sys.stderr.write(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def seconds(code: str, tries: int = 5) -> float:
    """Return the shortest time that a fresh interpreter took over `code`."""
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize(
    "code",
    [
        "import sublayer",
        "import sublayer; sublayer.parse('x = norm(x + attn(x) + ffn(x))')",
        "import sublayer; sublayer.designs()",
        "import sublayer.cli",
        SHOW,
    ],
)
def test_what_reads_equations_loads_nothing_heavy(code: str) -> None:
    assert not modules_after(code) & HEAVY


@pytest.mark.parametrize(
    "package", ["sublayer.compare", "sublayer.cost", "sublayer.finetune", "sublayer.report", "sublayer.study"]
)
def test_what_reads_results_loads_no_torch(package: str) -> None:
    assert not modules_after(f"import {package}") & {"torch", "transformers"}


@pytest.mark.parametrize(
    ("code", "limit"),
    [("import sublayer", 0.2), (SHOW, 0.6)],
    ids=["import sublayer", "sublayer show"],
)
def test_starts_at_once(code: str, limit: float) -> None:
    # The limits are for an idle laptop, on which a bare interpreter starts in about 0.02 s. Other tests run beside
    # this one, so a machine that takes longer over the bare interpreter is given as much longer over the rest.
    slowness = max(1.0, seconds("pass") / 0.02)
    assert seconds(code) < limit * slowness
