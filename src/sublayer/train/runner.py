"""One run: from a spec to a folder with records, weights and an account of how it went."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sublayer.whole_files import write_atomically

from .errors import TrainError
from .spec import TrainSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .cache import Corpus
    from .callbacks import Measure
    from .tokenizer import Vocabulary

SPEC, DATA, RESULT = "spec.json", "data.json", "run.json"
METRICS, PROGRESS, LOG = "metrics.jsonl", "progress.json", "log.txt"
#: A run with one of these has nothing left to do.
DONE = frozenset({"ok", "diverged"})
_log = logging.getLogger("sublayer")


def finished(out: Path) -> dict[str, Any] | None:
    """The row of a run that is done (`ok` or `diverged`), or None. `run.json` is written last, so it is the proof."""
    try:
        row = json.loads((Path(out) / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("status") in DONE else None


def run(
    spec: TrainSpec,
    out: Path | str,
    resume: bool = False,
    measure: bool | Measure = True,
    model_dir: Path | str | None = None,
    progress: IO[str] | None = None,
    flops_per_token: float | None = None,
    build: Callable[[TrainSpec, Vocabulary], PreTrainedModel] | None = None,
) -> dict[str, Any]:
    """Train one model in this process.

    Writes into `out`: spec.json, data.json, metrics.jsonl, log.txt, progress.json (for a parent's bar), checkpoints
    (`checkpoint-<step>`), the final weights, and last of all run.json.

    Args:
        spec: the settings.
        out: folder of the run.
        resume: go on from the newest whole checkpoint of `out`, or from the beginning when there is none; a run that is
            done is not run again.
        measure: True looks at every `+` with `sublayer.probe`; False measures nothing; or a callable of its own.
        model_dir: folder of the final weights, configuration and tokenizer; default `out/model`.
        progress: stream that shows a bar (terminal) or lines (file); None shows nothing.
        flops_per_token: of training, for the records; None estimates it from the weights.
        build: makes the model; default: the Sublayer model that the spec describes.

    Returns:
        The run's row: id, design, seed, lr, status (`ok`, `diverged`, `killed`, `failed`), reason, eval_loss (None
        unless ok), steps_done, train_loss, seconds, tokens_per_second, peak_memory_mb, threads, device, parameters,
        init_sha256, data_order_sha256, weights_sha256, measures, and the names of the files.

    Raises:
        TrainError: `out` holds another run, or an unfinished one and `resume` is False. Every other failure is a row
            with its status and reason, and its traceback is in log.txt.
    """
    began = time.monotonic()
    out = Path(out)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spec = spec.with_(threads=spec.threads or cores)
    row = _claim(spec, out, resume)
    if row is not None:
        return row
    row = {
        "id": out.name, "design": spec.design, "seed": spec.seed, "lr": spec.lr, "status": "failed", "reason": None,
        "eval_loss": None, "steps_done": 0, "train_loss": None, "seconds": 0.0, "tokens_per_second": None,
        "peak_memory_mb": None, "threads": spec.threads, "device": None, "parameters": None, "init_sha256": {},
        "data_order_sha256": None, "weights_sha256": None, "measures": None, "signal": None,
        "metrics": METRICS, "model": None, "log": LOG,
    }  # fmt: skip

    def wall() -> float:
        return float(row["seconds"]) + time.monotonic() - began

    with _logging_to(out / LOG):
        _log.info("%s: %s, %d steps of %d tokens", out.name, spec.design, spec.total_steps, spec.tokens_per_step)
        try:
            weights = Path(model_dir) if model_dir else out / "model"
            _train(spec, out, row, measure, weights, progress, flops_per_token, build, wall)
        except KeyboardInterrupt:
            row.update(status="killed", reason="interrupted before the step was finished", signal=int(signal.SIGINT))
        except Exception as error:
            _explain(row, error)
        row["seconds"] = round(wall(), 3)
        row["peak_memory_mb"] = _peak_memory_mb()
        _log.info("%s: %s%s", out.name, row["status"], f" ({row['reason']})" if row["reason"] else "")
    write_atomically(out / RESULT, json.dumps(row, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return row


def _claim(spec: TrainSpec, out: Path, resume: bool) -> dict[str, Any] | None:
    """Make `out` this run's folder. The row of a run that is already done, or None when there is work."""
    if out.exists() and not out.is_dir():
        raise TrainError(f"{out} is a file; give a folder for the run")
    if (out / SPEC).exists() and not _never_began(out):
        if not resume:
            state = "a finished run" if finished(out) else "a run that is not finished"
            raise TrainError(f"{out} holds {state}; pass --resume to go on with it, or give another folder")
        changed = TrainSpec.load(out / SPEC).differences(spec)
        if changed:
            told = "; ".join(changed)
            raise TrainError(
                f"{out} holds a run with other settings ({told}); give those it began with, or another folder"
            )
        row = finished(out)
        if row is not None:
            return row
    (out / RESULT).unlink(missing_ok=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / SPEC, spec.to_json())
    except OSError as error:
        raise TrainError(f"cannot write to {out}: {error.strerror or error}; give another folder") from None
    return None


def _never_began(out: Path) -> bool:
    """Whether the folder's run failed before its first step, so that nothing is lost by beginning another there."""
    try:
        row = json.loads((out / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    failed = isinstance(row, dict) and row.get("status") == "failed" and row.get("steps_done") == 0
    return failed and not any(out.glob("checkpoint-*"))


def _explain(row: dict[str, Any], error: Exception) -> None:
    """Put what went wrong into the row, and its traceback into the log."""
    import torch

    from .trainer import Diverged

    if isinstance(error, Diverged):
        row.update(status="diverged", reason=error.reason, steps_done=max(0, error.step - 1), eval_loss=None)
        return
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        reason = f"out of memory: {_first_line(error)}; use a smaller batch with more accumulation"
        row.update(status="killed", reason=reason)
    elif isinstance(error, TrainError):
        row.update(status="failed", reason=str(error))
        return
    else:
        row.update(status="failed", reason=f"{type(error).__name__}: {_first_line(error)}")
    row["eval_loss"] = None
    _log.error("%s", "".join(traceback.format_exception(error)))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _train(
    spec: TrainSpec,
    out: Path,
    row: dict[str, Any],
    measure: bool | Measure,
    model_dir: Path,
    stream: IO[str] | None,
    flops: float | None,
    build: Callable[[TrainSpec, Vocabulary], PreTrainedModel] | None,
    wall: Callable[[], float],
) -> None:
    """The run itself; fills in `row`."""
    from .progress import Progress

    progress = Progress(spec.total_steps, out / PROGRESS, stream, out.name)
    try:
        progress.phase("data")
        from .cache import prepare

        corpus = prepare(spec)
        progress.phase("model")
        with _machine(spec):
            _train_on(corpus, spec, out, row, measure, model_dir, progress, flops, build, wall)
    finally:
        progress.phase(row["status"])
        progress.close()


def _train_on(
    corpus: Corpus,
    spec: TrainSpec,
    out: Path,
    row: dict[str, Any],
    measure: bool | Measure,
    model_dir: Path,
    progress: Any,
    flops: float | None,
    build: Callable[[TrainSpec, Vocabulary], PreTrainedModel] | None,
    wall: Callable[[], float],
) -> None:
    from . import build as building
    from . import checkpoint
    from .callbacks import Guard, MetricsFile, StopOnSignal, reseed
    from .dataset import PackedRows
    from .trainer import GuardedTrainer

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainError("a run is one process, and WORLD_SIZE is set; start it without torchrun")
    facts = {key: corpus.facts[key] for key in ("sha256", "tokenizer_sha256", "train_tokens")}
    identity = {"spec_sha256": spec.sha256(), "data": facts}
    newest = checkpoint.latest(out)
    if newest is not None and {key: newest[1].get(key) for key in identity} != identity:
        raise TrainError(f"{newest[0]} was made from other data or settings; restore those, or give another folder")
    write_atomically(out / DATA, json.dumps(corpus.facts, indent=2) + "\n")

    words = corpus.vocabulary
    rows = PackedRows(
        corpus.train, words, spec.objective, spec.seq,
        length=spec.total_steps * spec.rows_per_step, data_seed=spec.data_seed, mask_rate=spec.mask_rate,
    )  # fmt: skip
    held_out = PackedRows(corpus.eval, words, spec.objective, spec.seq, mask_rate=spec.mask_rate, limit=spec.eval_rows)
    reseed(spec.seed, 0)
    model = (build or building.build)(spec, words)
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    row["init_sha256"] = building.weights_sha256(model)
    use_cache = getattr(model.config, "use_cache", None)
    flops = flops or building.flops_per_token(model, spec)
    looks = None
    if measure is not False:
        looks = _default_measure(held_out, spec) if measure is True else measure

    metrics = MetricsFile(out / METRICS, newest[1]["step"] if newest else None)
    with StopOnSignal() as stop:
        guard = Guard(spec, out, metrics, progress, stop, identity, flops, looks, wall)
        trainer = guard.trainer = GuardedTrainer(model, spec, str(out), rows, held_out, [guard])
        row["device"] = str(trainer.args.device)
        if newest is not None:
            guard.restore(newest[0])
            row["seconds"] = float(newest[1]["seconds"])
            _log.info("resuming from step %d", newest[1]["step"])
        progress.phase("train")
        trainer.train(resume_from_checkpoint=str(newest[0]) if newest else None)
        progress.phase("finish")
        step = trainer.state.global_step
        row.update(
            steps_done=step,
            train_loss=_smoothed(metrics),
            tokens_per_second=round(step * spec.tokens_per_step / guard.seconds, 1) if guard.seconds else None,
            data_order_sha256=trainer.order,
        )
        if step < spec.total_steps:
            number = stop.received or 0
            name = signal.Signals(number).name if number else "a callback"
            reason = f"stopped by {name} after step {step}; --resume goes on from there"
            row.update(status="killed", signal=number or None, reason=reason)
            return
    if use_cache is not None:  # the Trainer turns it off, and it would be saved so
        model.config.use_cache = use_cache
    _save(model, corpus, spec, model_dir)
    with open(model_dir / "model.safetensors", "rb") as weights:
        row["weights_sha256"] = hashlib.file_digest(weights, "sha256").hexdigest()
    if "measure" in metrics.last:
        row["measures"] = {key: value for key, value in metrics.last["measure"].items() if key != "kind"}
    row.update(status="ok", eval_loss=metrics.last["eval"]["loss"], model=os.path.relpath(model_dir, out))
    if spec.save_steps == 0:  # only a signal made checkpoints, and they have served
        checkpoint.rotate(out, 0)


def _smoothed(metrics: Any) -> float | None:
    """The last logged training loss, which is the mean over the last `log_every` steps."""
    last = metrics.last.get("train")
    return last["loss"] if last else None


def _default_measure(held_out: Any, spec: TrainSpec) -> Measure:
    """`sublayer.probe` on the first held-out rows, as the evaluation reads them."""
    from sublayer.probe import capture

    from .trainer import collate

    batch = collate([held_out[index] for index in range(min(spec.measure_rows, len(held_out)))])
    batch.pop("labels")

    def measure(model: PreTrainedModel, step: int) -> dict[str, Any]:
        on = {name: value.to(model.device) for name, value in batch.items()}
        return capture.measure(model, [on], step=step)

    return measure


def _save(model: PreTrainedModel, corpus: Corpus, spec: TrainSpec, folder: Path) -> None:
    """Final weights, configuration and tokenizer, as any Hugging Face model is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for path in sorted(corpus.tokenizer.iterdir()):
        shutil.copyfile(path, folder / path.name)
    settings = folder / "tokenizer_config.json"
    if settings.exists():  # no text is longer than the model has positions for
        values = json.loads(settings.read_text(encoding="utf-8"))
        settings.write_text(json.dumps({**values, "model_max_length": spec.seq}, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _machine(spec: TrainSpec) -> Iterator[None]:
    """Fix what decides the order of sums: the number of threads, and deterministic kernels where there is a GPU.
    Progress bars of transformers are off: saving a model would draw one into the log."""
    import torch
    from transformers.utils import logging as messages

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    assert spec.threads is not None
    torch.set_num_threads(spec.threads)
    bars = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    if spec.device == "auto" and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        if bars:
            messages.enable_progress_bar()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Write what this package and transformers log to a file, with times; warnings also to standard error."""
    form = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(form)
    loggers = [logging.getLogger("sublayer"), logging.getLogger("transformers")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.addHandler(handler)
    loggers[0].setLevel(logging.INFO)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)
        handler.close()


def _peak_memory_mb() -> float:
    """Peak resident memory of this process. `VmHWM` where there is one: `ru_maxrss` of a child can be its parent's."""
    with contextlib.suppress(OSError, StopIteration):
        text = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(line for line in text.splitlines() if line.startswith("VmHWM:"))
        return round(int(line.split()[1]) / 1024, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
