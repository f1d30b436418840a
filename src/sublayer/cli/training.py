"""`sublayer compare` and `sublayer train`: one set of options, since a run is a run of a study."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

SIZES = ("tiny", "small", "base", "large")

# (option, type, help) of every setting that is passed on to `TrainSpec` under the same name.
_SETTINGS: tuple[tuple[str, Any, str], ...] = (
    (
        "--data",
        str,
        "docs (documentation of the running Python), a .txt, .jsonl or .parquet file, a folder, or hub:NAME[:CONFIG].",
    ),
    ("--objective", click.Choice(["mlm", "clm"]), "Masked or causal language modelling."),
    ("--layers", int, "Number of blocks."),
    ("--hidden", int, "Width d of the residual stream."),
    ("--heads", int, "Attention heads."),
    ("--kv-heads", int, "Heads of keys and values (grouped-query attention)."),
    ("--ffn", int, "Inner width of the FFN."),
    ("--hidden-act", str, "relu, gelu, silu, swiglu or geglu."),
    ("--norm", click.Choice(["layernorm", "rmsnorm", "dyt"]), "What `norm` in an equation is."),
    ("--positions", click.Choice(["learned", "rotary", "none"]), "Position embedding."),
    ("--qk-norm", bool, "Norm on queries and keys."),
    ("--dropout", float, "Dropout where BERT has it."),
    ("--init", click.Choice(["normal", "deepnorm"]), "Initialisation."),
    ("--initializer-range", float, "Standard deviation of the initial weights."),
    ("--seq", int, "Tokens a row."),
    ("--batch", int, "Rows a forward pass."),
    ("--accumulation", int, "Forward passes an optimiser step."),
    ("--steps", int, "Optimiser steps."),
    ("--tokens", int, "Tokens to train on, instead of --steps."),
    ("--warmup", float, "Below 1: share of the steps; from 1: steps."),
    ("--schedule", click.Choice(["cosine", "constant", "linear"]), "Learning rate after the warm-up."),
    ("--weight-decay", float, "On matrices; never on norms, biases and scales."),
    ("--clip", float, "Largest norm of the gradient; 0 for no clipping."),
    ("--tokenizer", str, "Name or path; default a byte-level BPE trained on the training text."),
    ("--vocab-size", int, "Size of the tokenizer that is trained."),
    ("--data-seed", int, "Seed of the data order and of the masks."),
    ("--eval-every", int, "Steps between evaluations."),
    ("--measure-every", int, "Steps between measurements at every +."),
    ("--save-steps", int, "Steps between checkpoints; 0: only when told to stop."),
    ("--threads", int, "Threads of a run. Part of the result's last digits, so it is recorded."),
    ("--workers", int, "Processes that make batches ahead; no weight depends on it.  [default: 0]"),
    ("--device", click.Choice(["auto", "cpu"]), "auto takes a GPU if there is one."),
    ("--dtype", click.Choice(["float32", "bf16"]), "Arithmetic of the forward pass."),
    ("--compile", bool, "Compile the model."),
    ("--attn-implementation", str, "sdpa, eager, flex_attention or flash_attention_2."),
    ("--report-to", str, "Trackers of transformers' Trainer, separated by commas."),
    ("--cache", click.Path(path_type=str), "Folder of tokenised data."),
)


def _with_settings(function: F) -> F:
    for name, kind, text in reversed(_SETTINGS):
        function = click.option(name, type=kind, default=None, help=text)(function)
    return click.option(
        "--size",
        type=click.Choice(SIZES),
        default=None,
        help="Shape and budget by name; the other options override it.  [default: tiny]",
    )(function)


def _numbers(kind: type, name: str) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    def read(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Any, ...]:
        if value is None:
            return ()
        try:
            found = tuple(kind(part) for part in value.split(",") if part.strip())
        except ValueError:
            found = ()
        if not found:
            raise click.BadParameter(f"{name} are numbers separated by commas, got {value!r}", context, parameter)
        return found

    return read


@click.command()
@click.argument("designs", nargs=-1, metavar="[DESIGN]...")
@_with_settings
@click.option(
    "--lr",
    "lrs",
    default=None,
    callback=_numbers(float, "learning rates"),
    help="Learning rates, separated by commas; each design is shown at its best.",
)
@click.option(
    "--seeds",
    default=None,
    callback=_numbers(int, "seeds"),
    help="Seeds of the initial weights, separated by commas; three or more give intervals.  [default: 0]",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML or JSON file of settings; the command line overrides it.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the study.  [default: sublayer-study]")
@click.option("--resume", is_flag=True, help="Go on with the study in --out: run only what is missing.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Runs at once.  [default: cores / threads, at most 4; with slurm and ray as many as there is room for]",
)
@click.option("--no-measure", is_flag=True, help="Do not look inside the models.")
@click.option(
    "--executor",
    type=click.Choice(["local", "slurm", "ray"]),
    default="local",
    show_default=True,
    help="Where the runs are carried out: on this machine, as an array job of SLURM, or on a Ray cluster.",
)
@click.option("--submit", is_flag=True, help="With --executor slurm: submit the scripts, not only write them.")
@click.option(
    "--sbatch",
    multiple=True,
    metavar="OPTION",
    help="With --executor slurm: a line for the scripts, such as --sbatch=--time=2:00:00. May be given several times.",
)
@click.option(
    "--index",
    type=click.IntRange(min=0),
    help="Run only run INDEX, from 0, of the study that is planned in --out; other processes may work on other runs.",
)
@click.option("--gather", is_flag=True, help="Run nothing: write the results of what lies in --out.")
def compare(
    designs: tuple[str, ...],
    lrs: tuple[float, ...],
    seeds: tuple[int, ...],
    config: Path | None,
    out: Path | None,
    resume: bool,
    jobs: int | None,
    no_measure: bool,
    executor: str,
    submit: bool,
    sbatch: tuple[str, ...],
    index: int | None,
    gather: bool,
    **settings: Any,
) -> None:
    """Train designs side by side, fairly; measure at every +; write results.json and report.html.

    Each DESIGN is a name or an equation; the first is the baseline. Default: post-norm paf input-norm output-norm.
    With --config a study made of parts (see docs/studies.md) is run as its file says. For many machines see
    docs/executors.md: --index and --gather take a study's settings from its folder, and may be given without others.
    """
    from sublayer.compare import compare as run
    from sublayer.train import distributed

    if distributed.several():
        raise distributed.NotGivenError(
            "a study starts its own processes, and WORLD_SIZE is set; start it without torchrun"
        )
    if index is not None or gather:
        from sublayer.cli import tasks

        given = [k for k, v in (settings | {"lr": lrs, "seeds": seeds, "config": config, "jobs": jobs}).items() if v]
        given += [*designs, *(["executor"] if executor != "local" else [])]
        tasks.take_up(out, index, gather, given, not no_measure)
        return
    if config is not None and _is_program(config):
        if executor != "local":
            raise click.UsageError(
                f"a study made of parts runs on one machine, but --executor is {executor}: leave it "
                "out, or give each part's designs and settings to a study of its own"
            )
        given = [*designs, *(f"--{k}" for k, v in (settings | {"lr": lrs, "seeds": seeds}).items() if v)]
        _run_program(config, given, out, resume, jobs)
        return
    values = _read(config)
    values.update({k: v for k, v in _given(settings).items() if v is not None})
    chosen = list(designs) or values.pop("designs", [])
    values.pop("designs", None)
    study = run(
        chosen,
        out=out,
        output=sys.stderr,
        seeds=seeds or tuple(values.pop("seeds", (0,))),
        lrs=lrs or tuple(values.pop("lrs", ())),
        size=values.pop("size", None) or "tiny",
        jobs=jobs,
        measure=not no_measure,
        resume=resume,
        command=["sublayer", *sys.argv[1:]],
        executor=executor,
        submit=submit,
        sbatch=sbatch,
        **{k: v for k, v in values.items() if k not in ("seeds", "lrs")},
    )
    if executor != "slurm":
        shown(study)


def shown(study: Any) -> None:
    """The end of a study on a terminal: its table, and where the files are."""
    click.echo(f"\n{study}\n")
    click.echo(f"results: {study.folder / 'results.json'}")
    click.echo(f"report:  {study.report}")


@click.command()
@click.argument("design", required=False)
@_with_settings
@click.option("--lr", type=float, default=None, help="Learning rate.")
@click.option("--seed", type=int, default=None, help="Seed of the initial weights.  [default: 0]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML or JSON file of settings; the command line overrides it.",
)
@click.option("--recipe", help="A published model and its training, by name, or a YAML file; see docs/recipes.md.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run; the weights are OUT/model.safetensors.",
)
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint in --out.")
@click.option(
    "--parallel",
    type=click.Choice(["none", "ddp", "fsdp2"]),
    help="How torchrun's processes share the run: each a copy of the model, or a part.  [default: ddp if several]",
)
@click.option("--no-measure", is_flag=True, help="Do not look inside the model.")
@click.option(
    "--dry-run", "dry", is_flag=True, help="With --recipe: print memory a GPU, FLOPs and days; train nothing."
)
@click.option("--gpus", type=int, default=1, show_default=True, help="Dry run: how many GPUs.")
@click.option("--gpu-memory", type=float, default=80, show_default=True, help="Dry run: GB of each GPU.")
@click.option("--gpu-flops", type=float, help="Dry run: FLOP/s of each GPU.  [default: 989e12, H100 SXM, bf16 dense]")
@click.option("--mfu", type=float, default=0.4, show_default=True, help="Dry run: share of the FLOP/s that is reached.")
@click.option("--json", "as_json", is_flag=True, help="Dry run: print as JSON.")
def train(
    design: str | None,
    config: Path | None,
    recipe: str | None,
    out: Path | None,
    resume: bool,
    parallel: str | None,
    no_measure: bool,
    dry: bool,
    gpus: int,
    gpu_memory: float,
    gpu_flops: float | None,
    mfu: float,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train one model: one run of a study, with the same options. OUT is a Hugging Face checkpoint in the end.

    With --recipe the settings are the recipe's, where no option says otherwise; --steps or --layers makes it a trial of
    one row a step on local text, at full width.
    """
    from sublayer.study import Plan
    from sublayer.train import distributed, prepare
    from sublayer.train import run as run_one

    values = _read(config)
    values.update({k: v for k, v in _given(settings).items() if v is not None})
    for key in ("designs", "seeds", "lrs"):
        values.pop(key, None)  # of a study; this is one run
    if dry:
        if recipe is None:
            raise click.UsageError("a dry run is of a recipe: give --recipe NAME")
        from sublayer.cli.recipe import forecast

        forecast(recipe, {**values, "design": design}, gpus, gpu_memory, gpu_flops, mfu, as_json)
        return
    if out is None:
        raise click.UsageError("a run needs a folder: give --out FOLDER, or --dry-run with --recipe")
    if recipe is not None:
        from sublayer.cli.recipe import settings_of

        values = settings_of(recipe, {**values, "design": design})
        design = values.pop("design")
    elif design is None:
        raise click.UsageError("give a DESIGN, or --recipe NAME")
    parallel = parallel or values.pop("parallel", None)
    if distributed.chosen(parallel) != "none":
        # torch's C++ would warn in each process that all parameters are used, which is as it should be
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    seed, lr, size = values.pop("seed", 0), values.pop("lr", None), values.pop("size", "tiny")
    (planned,) = Plan.make([design], seeds=(seed,), lrs=() if lr is None else (lr,), size=size, **values).runs()
    spec = planned.spec
    if not distributed.several():  # else the run does it, once for all processes
        prepare(spec)  # data that cannot be read is refused before the folder is begun
    row = run_one(
        spec, out, resume=resume, measure=not no_measure, model_dir=out, progress=sys.stderr, parallel=parallel
    )
    if row["status"] == "ok":
        if distributed.speaks():
            click.echo(f"held-out loss {row['eval_loss']:.4f} after {row['steps_done']} steps; model in {out}")
        return
    if distributed.speaks():
        click.echo(f"{row['status']}: {row['reason']}", err=True)
    sys.exit({"diverged": 3, "failed": 1}.get(row["status"], 128 + (row.get("signal") or 9)))


def _is_program(config: Path) -> bool:
    from sublayer.study import is_program

    return is_program(config)


def _run_program(config: Path, given: list[str], out: Path | None, resume: bool, jobs: int | None) -> None:
    """A study made of parts: its file decides, so other settings are refused."""
    from sublayer import report
    from sublayer.study import Program, StudyError, run_program
    from sublayer.study.program import summary

    if given:
        raise StudyError(f"{config} says what its parts run, so {', '.join(given)} cannot be given too: edit the file")
    if out is None:
        raise StudyError("a study made of parts needs a folder: give --out FOLDER")
    record = run_program(
        Program.load(config), out, jobs=jobs, resume=resume,
        command=["sublayer", *sys.argv[1:]], page=report.write, write=report.write_record,
    )  # fmt: skip
    click.echo(f"\n{summary(record)}\n")
    click.echo(f"results: {out / 'results.json'}")
    click.echo(f"report:  {out / 'report.html'}")


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    if settings.get("report_to") is not None:
        settings["report_to"] = tuple(part.strip() for part in settings["report_to"].split(",") if part.strip())
    return settings


def _read(config: Path | None) -> dict[str, Any]:
    from sublayer.study import read_config

    return read_config(config) if config else {}
