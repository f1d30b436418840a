"""`run_study`: run a plan, gather the results, write the page; `Study`: what it gives back."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sublayer import folders, signed
from sublayer.streams import STDERR
from sublayer.study.errors import StudyError
from sublayer.study.execute import FINISHED, arguments, execute, finished
from sublayer.study.files import PLAN, check, choose, locked, planned
from sublayer.study.plan import Plan
from sublayer.study.results import gather, read_results, run_cost
from sublayer.train.frame import cores

if TYPE_CHECKING:
    import pandas

MAX_JOBS = 4  # without being asked for more: a run of the tiny size takes about 0.7 GB


class Study:
    """The results of a study and where they are.

    Attributes:
        folder: has ``results.json``, ``report.html``, ``plan.json`` and one folder a run.
        results: what is in ``results.json``.
    """

    def __init__(self, folder: Path, results: dict[str, Any]) -> None:
        self.folder = folder
        self.results = results

    @classmethod
    def load(cls, folder: str | Path) -> "Study":
        """Read a study that was run before."""
        return cls(Path(folder), read_results(Path(folder)))

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        return str(self.results["verdict"])

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON values."""
        return self.results

    def to_frame(self) -> "pandas.DataFrame":
        """One row a run: design, seed, lr, status, eval_loss, time and memory. Needs pandas."""
        try:
            import pandas
        except ModuleNotFoundError:
            raise StudyError("to_frame needs pandas, which is not installed; pip install 'sublayer[frames]'") from None
        columns = [
            "id",
            "design",
            "seed",
            "lr",
            "status",
            "eval_loss",
            "train_loss",
            "steps_done",
            "seconds",
            "tokens_per_second",
            "peak_memory_mb",
        ]
        return pandas.DataFrame([{c: r.get(c) for c in columns} for r in self.results["runs"]], columns=columns)

    def missing(self) -> list[int]:
        """Places in the plan of the runs that are not finished: not run, stopped, killed or failed."""
        return [i for i, row in enumerate(self.results["runs"]) if row["status"] not in FINISHED]

    def model(self, design: str, seed: int | None = None) -> Path:
        """Folder of the trained model of one design: a Hugging Face checkpoint."""
        for row in self.results["runs"]:
            if row["design"] == design and row["status"] == "ok" and seed in (None, row["seed"]):
                return self.folder / str(row["model"])
        raise StudyError(
            f"no finished run of {design!r}{'' if seed is None else f' with seed {seed}'}; designs are "
            f"{', '.join(d['id'] for d in self.results['designs'])}"
        )

    def __str__(self) -> str:
        return table(self.results)

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(str(self))}</pre>"


def run_study(
    plan: Plan,
    out: str | Path | None = None,
    *,
    jobs: int | None = None,
    measure: bool = True,
    resume: bool = False,
    output: IO[str] | None = STDERR,
    command: Sequence[str] = (),
    report: Callable[[dict[str, Any], Path, Path], None] | None = None,
    executor: Callable[..., None] | None = None,
) -> Study:
    """Run a plan in its folder and write `results.json`, and `report.html` with ``report``; both also after an
    interruption.

    ``report`` is `sublayer.report.write`, or another function of the results, the study's folder and the page's path;
    ``executor`` one of `sublayer.study.executors`, by default processes of this machine.
    """
    if jobs is not None and jobs < 1:
        raise StudyError(f"jobs must be at least 1, got {jobs}")
    if executor is not None and plan.base.threads is None:
        raise StudyError(
            "the last digits of weights depend on the threads of a run, so that they cannot be left to each of several "
            "machines: give --threads N"
        )
    carry_out: Callable[..., None] = executor or execute
    if jobs is None and executor is None:
        jobs = _default_jobs(plan)
    folder = choose(out, resume)
    check(plan, folder, resume)
    facts = _prepare(plan, output)
    flops = _flops(plan, facts)
    folders.make(folder, StudyError)
    line = list(command) or _call(plan, folder)
    with locked(folder):
        check(plan, folder, resume)  # another process may have begun a study here meanwhile
        signed.write(folder / PLAN, plan.to_dict())
        if output is not None:
            count = len(plan.runs())
            print(
                f"{len(plan.designs)} designs, {count} runs of {plan.base.total_steps} steps of "
                f"{plan.base.tokens_per_step} tokens, in {folder}",
                file=output,
                flush=True,
            )
        try:
            carry_out(plan, folder, jobs=jobs, measure=measure, flops=flops, output=output)
        finally:
            study = _write(plan, folder, facts, line, report)
    return study


def gather_study(
    out: str | Path | None,
    *,
    command: Sequence[str] = (),
    report: Callable[[dict[str, Any], Path, Path], None] | None = None,
) -> Study:
    """Write the results and the page of a study from what lies in its folder now, whoever ran it; runs nothing."""
    folder, plan = planned(out)
    facts = _prepare(plan, None)
    with locked(folder):
        return _write(plan, folder, facts, list(command) or _call(plan, folder), report)


def run_one(out: str | Path | None, index: int, *, measure: bool = True) -> int:
    """Run one run of a study's plan in this process, from where it stands; nothing if it is finished.

    Other processes may work on other runs of the study at the same time.

    Args:
        out: the study's folder, with the plan that `run_study` wrote there.
        index: place of the run in the plan, from 0.
        measure: look at every ``+``.

    Returns:
        The exit status of `python -m sublayer.train`: 0 ok, 3 diverged, 1 failed, 2 refused, 128 + n stopped by
        signal n.

    Raises:
        StudyError, TrainError: no such study, no such run, or no data.
    """
    # read once, when torch loads its OpenMP runtime: threads that spin while waiting take the cores from each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    folder, plan = planned(out)
    runs = plan.runs()
    if not 0 <= index < len(runs):
        raise StudyError(f"the study in {folder} has runs 0 to {len(runs) - 1}, got index {index}")
    run = runs[index]
    row = finished(folder, run)
    if row is not None:
        return 0 if row["status"] == "ok" else 3
    flops = _flops(plan, _prepare(plan, None))[run.design]
    from sublayer.train.__main__ import main

    return main(arguments(folder, run, measure, flops))


def _flops(plan: Plan, facts: Mapping[str, Any]) -> dict[str, float]:
    """Training FLOPs per token of each design."""
    return {p.id: run_cost(plan, p, int(facts["vocab_size"]))["flops_per_token"] for p in plan.designs}


def _default_jobs(plan: Plan) -> int:
    """As many runs as the cores allow; a run without a number of threads takes all cores."""
    return max(1, min(MAX_JOBS, cores() // (plan.base.threads or cores())))


def _prepare(plan: Plan, output: IO[str] | None) -> Mapping[str, Any]:
    """Tokenise the data once, before anything starts, so that bad data fails here and runs find it ready."""
    from sublayer.train import prepare

    if output is not None:
        print(f"data: {plan.base.data}", file=output, flush=True)
    return prepare(plan.base).facts


def _write(
    plan: Plan,
    folder: Path,
    facts: Mapping[str, Any],
    command: Sequence[str],
    report: Callable[[dict[str, Any], Path, Path], None] | None,
) -> Study:
    results = gather(plan, folder, facts, command)
    signed.write(folder / "results.json", results)
    study = Study(folder, results)
    if report is not None:
        report(results, folder, study.report)
    return study


def _call(plan: Plan, folder: Path) -> list[str]:
    """A command line that runs the same study."""
    return ["sublayer", "compare", "--config", str(folder / PLAN), "--out", "FOLDER"]


def table(results: Mapping[str, Any]) -> str:
    """The final table and the two claims as text for a terminal."""
    rows = [
        (
            "design",
            "held-out loss",
            "difference",
            "interval",
            "ratio attn",
            "ffn keeps isotropy",
            "attention small",
            "lost",
        )
    ]
    answers = {c["claim"]: {a["design"]: a for a in c["answers"]} for c in results["claims"]}
    for row in results["comparison"]["rows"]:
        ffn, attn = answers["ffn-isotropy"][row["design"]], answers["attention-small"][row["design"]]
        interval = "-" if row["low"] is None else f"{row['low']:+.4f} .. {row['high']:+.4f}"
        rows.append(
            (
                row["design"],
                "lost" if row["mean"] is None else f"{row['mean']:.4f}",
                "-" if row["difference"] is None else f"{row['difference']:+.4f}",
                interval,
                "-" if attn["value"] is None else f"{attn['value']:.2f}",
                ffn["answer"],
                attn["answer"],
                str(row["lost"]),
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join([*lines, "", results["verdict"]])
