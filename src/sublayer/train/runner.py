"""One run: from a spec to a folder with records, weights and an account of how it went."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sublayer.whole_files import write_atomically

from . import distributed
from .distributed import NotGivenError, Team
from .errors import TrainError
from .frame import (
    DATA,
    LOG,
    METRICS,
    PROGRESS,
    SPEC,
    alone,
    claim,
    conclude,
    cores,
    cut_short,
    explain,
    go_through,
    interrupted,
    logging_to,
    machine,
    peak_memory_mb,
)  # fmt: skip
from .kept import MODEL
from .spec import TrainSpec
from .stopping import Interrupted, StopOnSignal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .cache import Corpus
    from .callbacks import Measure
    from .tokenizer import Vocabulary

_log = logging.getLogger("sublayer")


@alone
def run(
    spec: TrainSpec,
    out: Path | str,
    resume: bool = False,
    measure: bool | Measure = True,
    model_dir: Path | str | None = None,
    progress: IO[str] | None = None,
    flops_per_token: float | None = None,
    build: Callable[[TrainSpec, Vocabulary], PreTrainedModel] | None = None,
    parallel: str | None = None,
) -> dict[str, Any]:
    """Train one model in this process, or in this one and others that `torchrun` started with the same arguments.

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
        parallel: how the run is spread over processes: `none`, `ddp` or `fsdp2`; None takes `ddp` where there are
            several. The first process writes everything but the others' parts of a sharded checkpoint.

    Returns:
        The run's row: id, design, seed, lr, status (`ok`, `diverged`, `killed`, `failed`), reason, eval_loss (None
        unless ok), steps_done, train_loss, seconds, tokens_per_second, peak_memory_mb, threads, device, parameters,
        parallel, world_size, init_sha256, data_order_sha256, weights_sha256, measures, and the names of the files.

    Raises:
        TrainError: `out` holds another run, or an unfinished one and `resume` is False; or `parallel` is not given.
            Every other failure is a row with its status and reason, and its traceback is in log.txt.
    """
    began = time.monotonic()
    out = Path(out)
    with StopOnSignal() as stop, distributed.join(parallel, spec.device) as team:
        spec, done = team.tell(lambda: _open(spec, out, resume, team))
        if done is not None:
            return done
        row = _run(spec, out, stop, began, measure, model_dir, progress, flops_per_token, build, team)
        if stop.received is not None and row["status"] == "ok":
            raise Interrupted(stop.received)  # it came when the work was done: whoever sent it is told all the same
    return row


def _open(spec: TrainSpec, out: Path, resume: bool, team: Team) -> tuple[TrainSpec, dict[str, Any] | None]:
    """The settings in full, and the row of a run that is done; else `out` is this run's folder from here on."""
    # those of one machine share its cores; what the first process has is what all of them have
    spec = spec.with_(threads=spec.threads or max(1, cores() * team.nodes // team.size))
    distributed.share(spec, team.size)
    if team.size > 1:  # data that cannot be read is refused before the folder is begun, in one place
        from .cache import prepare

        prepare(spec)
    return spec, claim(spec, out, resume)


def _run(
    spec: TrainSpec,
    out: Path,
    stop: StopOnSignal,
    began: float,
    measure: bool | Measure,
    model_dir: Path | str | None,
    progress: IO[str] | None,
    flops: float | None,
    build: Callable[[TrainSpec, Vocabulary], PreTrainedModel] | None,
    team: Team,
) -> dict[str, Any]:
    """The row of a run whose folder is claimed."""
    if team.size > 1:
        seen = (out / SPEC).is_file() and TrainSpec.load(out / SPEC) == spec
        team.agree(seen, f"what {out} holds", "give a folder that all machines share")
    row: dict[str, Any] = {
        "id": out.name, "design": spec.design, "seed": spec.seed, "lr": spec.lr, "status": "failed", "reason": None,
        "eval_loss": None, "steps_done": 0, "train_loss": None, "seconds": 0.0, "tokens_per_second": None,
        "peak_memory_mb": None, "threads": spec.threads, "device": None, "parallel": team.parallel,
        "world_size": team.size, "parameters": None, "init_sha256": {},
        "data_order_sha256": None, "weights_sha256": None, "measures": None, "signal": None,
        "metrics": METRICS, "model": None, "log": LOG,
    }  # fmt: skip

    def wall() -> float:
        return float(row["seconds"]) + time.monotonic() - began

    refused: NotGivenError | None = None
    together = False  # whether all processes come to the same end
    with logging_to(out / LOG) if team.leads else contextlib.nullcontext():
        _log.info("%s: %s, %d steps of %d tokens", out.name, spec.design, spec.total_steps, spec.tokens_per_step)
        try:
            weights = Path(model_dir) if model_dir else out / MODEL
            _train(spec, out, row, measure, weights, progress, flops, build, wall, stop, team)
            together = True
        except KeyboardInterrupt as error:
            interrupted(row, error, out)
        except Exception as error:
            explain(row, error, spec, out)
            refused = error if isinstance(error, NotGivenError) else None
            together = row["status"] == "diverged"
            if not together and team.size > 1:
                _blame(row, team)
        row["seconds"] = round(wall(), 3)
        row["peak_memory_mb"] = peak_memory_mb()
        _log.info("%s: %s%s", out.name, row["status"], f" ({row['reason']})" if row["reason"] else "")
    if team.leads:
        conclude(row, out)
    if refused is not None:
        raise refused
    return team.tell(lambda: row) if together else row


def _blame(row: dict[str, Any], team: Team) -> None:
    """A process that fails takes the others with it: its reason is the run's."""
    if not team.leads:
        team.report(str(row["reason"]))
        return
    said = team.reason()
    row["reason"] = said or f"{row['reason']}; if another process was lost, --resume goes on from the last checkpoint"


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
    stop: StopOnSignal,
    team: Team,
) -> None:
    """The run itself; fills in `row`."""
    from .progress import Progress

    progress = Progress(
        spec.total_steps, out / PROGRESS if team.leads else None, stream if team.leads else None, out.name
    )
    try:
        progress.phase("data")
        from .cache import prepare

        corpus = prepare(spec)
        progress.phase("model")
        with machine(spec):
            _train_on(corpus, spec, out, row, measure, model_dir, progress, flops, build, wall, stop, team)
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
    stop: StopOnSignal,
    team: Team,
) -> None:
    from . import build as building
    from . import checkpoint
    from .callbacks import Guard, MetricsFile, reseed
    from .dataset import PackedRows
    from .trainer import GuardedTrainer

    facts = {key: corpus.facts[key] for key in ("sha256", "tokenizer_sha256", "train_tokens")}
    team.agree(facts, "the data", "put it and the cache into folders that all machines share")
    identity = {"spec_sha256": spec.sha256(), "data": facts}
    newest = team.tell(lambda: checkpoint.latest(out))
    if newest is not None and {key: newest[1].get(key) for key in identity} != identity:
        raise TrainError(f"{newest[0]} was made from other data or settings; restore those, or give another folder")
    sharded = team.parallel == "fsdp2"
    if newest is not None and newest[1].get("sharded", False) != sharded:
        way = "with" if newest[1].get("sharded", False) else "without"
        raise TrainError(f"{newest[0]} was made {way} --parallel fsdp2; go on {way} it, or give another folder")
    if team.leads:
        write_atomically(out / DATA, json.dumps(corpus.facts, indent=2) + "\n")

    words = corpus.vocabulary
    rows = PackedRows(
        corpus.train, words, spec.objective, spec.seq,
        length=spec.total_steps * spec.rows_per_step, data_seed=spec.data_seed, mask_rate=spec.mask_rate,
    )  # fmt: skip
    held_out = PackedRows(corpus.eval, words, spec.objective, spec.seq, mask_rate=spec.mask_rate, limit=spec.eval_rows)

    def make() -> PreTrainedModel:
        reseed(spec.seed, 0)
        return (build or building.build)(spec, words)

    model = make()
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    row["init_sha256"] = building.weights_sha256(model)
    team.agree(row["init_sha256"], "the weights before the first step", "let them depend on the seed alone")
    use_cache = getattr(model.config, "use_cache", None)
    each = flops or building.flops_per_token(model, spec)

    def extent(step: int) -> dict[str, float]:
        tokens = step * spec.tokens_per_step
        return {"tokens": tokens, "flops": tokens * each}

    looks = None
    if measure is not False:
        looks = _default_measure(held_out, spec) if measure is True else measure

    metrics = MetricsFile(
        out / METRICS if team.leads else None, *((newest[1]["step"], newest[0]) if newest else (None,))
    )
    with stop.patiently():
        guard = Guard(spec, out, metrics, progress, stop, {**identity, "sharded": sharded}, extent, looks, wall)
        given = (model, spec, str(out), rows, held_out, [guard], spec.objective == "clm")
        if sharded:
            from .sharded import ShardedTrainer

            trainer: GuardedTrainer = ShardedTrainer(make, *given, team=team)
        else:
            trainer = GuardedTrainer(*given, team=team)
        guard.trainer = trainer
        step = go_through(trainer, guard, newest, row)
        row.update(
            steps_done=step,
            train_loss=_smoothed(metrics),
            tokens_per_second=round(step * spec.tokens_per_step / guard.seconds, 1) if guard.seconds else None,
            data_order_sha256=trainer.order_sha256(),
        )
        if step < spec.total_steps:
            cut_short(row, step, stop.received)
            return

        def save(model: PreTrainedModel) -> str:
            if use_cache is not None:  # the Trainer turns it off, and it would be saved so
                model.config.use_cache = use_cache
            _save(model, corpus, spec, model_dir)
            with open(model_dir / "model.safetensors", "rb") as weights:
                return hashlib.file_digest(weights, "sha256").hexdigest()

        with trainer.whole() as whole:  # the first process has it and saves it, while the others wait
            row["weights_sha256"] = team.tell(lambda: save(whole))
        if "measure" in metrics.last:
            row["measures"] = {key: value for key, value in metrics.last["measure"].items() if key != "kind"}
        row.update(status="ok", eval_loss=metrics.last["eval"]["loss"], model=os.path.relpath(model_dir, out))
        if spec.save_steps == 0 and team.leads:  # only a signal made checkpoints, and they have served
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
    if folder.name == MODEL and (folder.parent / SPEC).exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off while saving, or was damaged
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for path in sorted(corpus.tokenizer.iterdir()):
        shutil.copyfile(path, folder / path.name)
    settings = folder / "tokenizer_config.json"
    if settings.exists():  # no text is longer than the model has positions for
        values = json.loads(settings.read_text(encoding="utf-8"))
        settings.write_text(json.dumps({**values, "model_max_length": spec.seq}, indent=2) + "\n", encoding="utf-8")
