"""`sublayer finetune`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from sublayer.cli.training import _numbers

_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")

# (option, type, help) of every setting that is passed on to `FinetuneSpec` under the same name.
_SETTINGS: tuple[tuple[str, Any, str], ...] = (
    ("--to", str, "Change the wiring to this design before training: a name or an equation."),
    ("--epochs", float, "Passes over the training rows.  [default: 3]"),
    ("--steps", int, "Optimiser steps, instead of --epochs."),
    ("--lr", float, "Learning rate.  [default: 2e-5]"),
    ("--batch", int, "Rows a step.  [default: 32]"),
    ("--group", int, "Sort the rows of so many batches by length, to pad less.  [default: 1, no sorting]"),
    ("--max-length", int, "Tokens a row.  [default: 128, or fewer if the model must]"),
    ("--warmup", float, "Below 1: share of the steps; from 1: steps.  [default: 0.1]"),
    ("--schedule", click.Choice(["linear", "cosine", "constant"]), "Rate after the warm-up.  [default: linear]"),
    ("--weight-decay", float, "On matrices only.  [default: 0.01]"),
    ("--clip", float, "Largest norm of the gradient; 0 for no clipping.  [default: 1]"),
    ("--dropout", float, "Of stream and attention weights.  [default: the checkpoint's]"),
    ("--pooling", click.Choice(["first", "last", "mean"]), "Token that is read.  [default: the checkpoint's]"),
    ("--head", click.Choice(["own", "linear"]), "Before the labels: as the checkpoint, or nothing.  [default: own]"),
    ("--train-examples", int, "Learn from so many rows, drawn once for all seeds."),
    ("--eval-every", int, "Steps between evaluations; 0: at the end only.  [default: an epoch]"),
    ("--patience", int, "Stop after so many evaluations without a better score."),
    (
        "--weights",
        click.Choice(["last", "best"]),
        "Weights that are scored.  [default: best with --patience, else last]",
    ),
    ("--save-steps", int, "Steps between checkpoints; 0: only when told to stop.  [default: --eval-every]"),
    ("--threads", int, "Threads. Part of the result's last digits, so it is recorded.  [default: all cores]"),
    ("--workers", int, "Processes that make batches ahead; no weight depends on it.  [default: 0]"),
    ("--device", click.Choice(["auto", "cpu"]), "auto takes a GPU if there is one."),
    ("--dtype", click.Choice(["float32", "bf16"]), "Arithmetic of the forward pass."),
    ("--attn-implementation", str, "sdpa or eager.  [default: sdpa]"),
)


def _with_settings(function: Any) -> Any:
    for name, kind, text in reversed(_SETTINGS):
        function = click.option(name, type=kind, default=None, help=text)(function)
    return function


@click.command()
@click.argument("checkpoint")
@click.option("--task", "tasks", type=click.Choice(_TASKS), multiple=True, help="Which task; may be given again.")
@click.option("--suite", type=click.Choice(["glue"]), help="Every task that the folder has, instead of --task.")
@click.option(
    "--data", default="hub", show_default=True, help="Folder of the official files, of one task or many; or hub."
)
@click.option(
    "--seeds",
    default=None,
    callback=_numbers(int, "seeds"),
    help="Of head, dropout and order, separated by commas; two or more give intervals.  [default: 0]",
)
@_with_settings
@click.option("--fresh-pooler", is_flag=True, help="Draw BERT's pooler anew, as for checkpoints that have none.")
@click.option("--no-model", is_flag=True, help="Do not keep the fine-tuned weights.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: sublayer-finetune]")
@click.option("--resume", is_flag=True, help="Go on with what is in --out: run only what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def finetune(
    checkpoint: str,
    tasks: tuple[str, ...],
    suite: str | None,
    data: str,
    seeds: tuple[int, ...],
    fresh_pooler: bool,
    no_model: bool,
    out: Path | None,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Fine-tune a checkpoint on GLUE and score it with the official metrics, beside the majority baseline.

    CHECKPOINT is a Hub id or a folder, of transformers or of `sublayer train`. Its head is new, drawn from the seed.
    """
    from sublayer.finetune.suite import exit_status, prepare_process
    from sublayer.finetune.suite import finetune as run

    prepare_process()
    found = run(
        checkpoint,
        tasks or None,
        suite=suite,
        data=data,
        seeds=seeds or (0,),
        out=out,
        resume=resume,
        output=sys.stderr,
        command=["sublayer", *sys.argv[1:]],
        fresh_pooler=fresh_pooler,
        save_model=not no_model,
        **{name: value for name, value in settings.items() if value is not None},
    )
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        click.echo(f"\n{found}\n\nresults: {found.folder / 'finetune.json'}")
    sys.exit(exit_status(found.results["runs"]))
