"""`sublayer probe`."""

import json
import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("model")
@click.option("--data", metavar="FILE|docs", help="Text: docs, a .txt, .jsonl or .parquet file, a folder, or hub:NAME.")
@click.option("--tokens", type=click.IntRange(2), default=8192, show_default=True, help="Tokens that the model reads.")
@click.option("--seq", type=click.IntRange(2), default=128, show_default=True, help="Tokens of a row at most.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Rows of a batch.")
@click.option(
    "--measures",
    type=click.Choice(["default", "all"]),
    default="default",
    show_default=True,
    help="all: on up to 4,096 tokens whatever that costs, with lens and gradients.",
)
@click.option(
    "--max-tokens", type=click.IntRange(2), help="Tokens that are measured at most; by default what is cheap."
)
@click.option("--lens", is_flag=True, help="The loss by layer, each layer's stream put through the model's own end.")
@click.option("--gradients", is_flag=True, help="Gradient norms of each layer and sub-layer.")
@click.option("--intervals", is_flag=True, help="Bootstrap intervals over documents.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of masks, random ids, weights and the bootstrap.")
@click.option("--compare", "other", metavar="OTHER", help="A second model beside it, on the same text.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Write JSON and a page."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, or one that torch has.")
def probe(model: str, other: str | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure a model at every + of its equations: what each term adds, isotropy with and without it, attention.

    MODEL is a Hub id, a checkpoint's folder, a config.json (random weights), or package.module:callable that returns a
    module. Text is read with the checkpoint's own tokenizer; without one the ids are random. Nothing is written per
    family: where the sums are is read from the model, and what cannot be measured is said.
    """
    from sublayer.probe.compare import compare
    from sublayer.study.probed import answer_probe
    from sublayer.whole_files import write_atomically

    names = [model, *([other] if other else [])]
    found = [_probed(name, options) for name in names]
    claims = [answer_probe(p.record, name) for p, name in zip(found, names, strict=True)]
    if other is not None:
        both = compare(found[0], found[1], (model, other))
        record: dict[str, Any] = both.to_dict()
        text = str(both)
    else:
        record = found[0].to_dict()
        text = str(found[0])
    command = ["sublayer", *sys.argv[1:]]
    record = {**record, "command": command, "claims": claims if other else claims[0]}
    notes = [f"note: {note}" for p in found for note in p.record["notes"]]
    if as_json:
        click.echo(json.dumps(record, indent=1, allow_nan=False))
    else:
        said = [f"{c['question']} {a['answer']}. {a['detail']}" for of in claims for c in of for a in c["answers"]]
        click.echo("\n".join([*notes, *([""] if notes else []), text, "", *said]))
    if out is not None:
        from sublayer.report.probe_page import write_probe

        write_atomically(out / "probe.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
        write_probe(record, out / "probe.html")
        click.echo(f"wrote {out / 'probe.json'} and {out / 'probe.html'}", err=True)


def _probed(name: str, options: dict[str, Any]) -> Any:
    from sublayer.cli.probe_text import text_for
    from sublayer.probe import Probe
    from sublayer.probe.opening import open_model
    from sublayer.probe.result import probe as run

    opened = open_model(name, options["device"], options["seed"])
    everything = options["measures"] == "all"
    gradients, lens = options["gradients"] or everything, options["lens"] or everything
    text = text_for(
        opened.folder,
        opened.module,
        options["data"],
        options["tokens"],
        options["seq"],
        options["batch"],
        options["seed"],
        gradients or lens,
    )
    found = run(
        opened.module,
        text.batches,
        max_tokens=options["max_tokens"],
        measures=options["measures"],
        loss=True if gradients else None,
        lens=lens,
        intervals=options["intervals"],
        seed=options["seed"],
    )
    more = {"name": name, "data": text.said, "seed": options["seed"], "notes": [*opened.notes, *text.notes]}
    return Probe({**found.record, **more})
