"""`sublayer convert`."""

import json
import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("src", metavar="SRC")
@click.argument("dst", metavar="[DST]", required=False, type=click.Path(path_type=Path))
@click.option("--to", "design", metavar="DESIGN", help="The new wiring: a name or an equation.")
@click.option("--layers", metavar="SPEC", help="Convert these layers only: 0,3,5-7 (ends included) or 2:6, from 0.")
@click.option("--defects", is_flag=True, help="Print how much each layer minds running its sub-layers in parallel.")
@click.option("--to-parallel", "k", type=int, metavar="K", help="Make the K layers parallel that mind least.")
@click.option(
    "--rank",
    type=click.Choice(["defect", "loss"]),
    default="defect",
    show_default=True,
    help="What --to-parallel goes by.",
)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text to measure the change on, paragraphs between blank lines.  [default: a short one of our own]",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Rescale each sub-layer to count as before: on half of the rows, measured on the others.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of random ids where SRC has no tokenizer.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it holds files.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def convert(
    src: str,
    dst: Path | None,
    design: str | None,
    layers: str | None,
    defects: bool,
    k: int | None,
    rank: Any,
    text: Path | None,
    calibrate: bool,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Change the wiring of a checkpoint: print what was kept, dropped and new, and how far the function moved.

    SRC is a Hub id or a checkpoint folder. DST, a new folder, gets the converted checkpoint and conversion.json, which
    says how it was made. With --defects alone nothing is written and DST is left out.
    """
    from sublayer.notation import parse

    _check(dst, design, layers, defects, k)
    if design is not None:
        parse(design)  # what can be wrong with an argument is said before the weights are read
    words = _read(text) if text is not None else None

    from sublayer.hf import export, load
    from sublayer.hf.convert import defect_map, rewire, sample, to_parallel, tokenizer_of
    from sublayer.hf.convert.folder import RECORD, check_target, record, write_folder
    from sublayer.whole_files import write_atomically

    if dst is not None:
        check_target(dst, overwrite)
    model = load(src)
    batches = sample(model, tokenizer_of(getattr(model, "loaded_from", src)), words, seed)
    if batches.notice:
        click.echo(f"note: {batches.notice}", err=True)
    found = defect_map(model, batches.batches) if defects or k is not None else None
    if found is not None and not as_json:
        click.echo(str(found))
    if dst is None:
        if as_json and found is not None:
            click.echo(json.dumps({"defects": found.to_dict()}, indent=2))
        return
    rows, fit = batches.batches, None
    if calibrate:
        fit, rows = rows[::2], rows[1::2] or rows
    if k is not None:
        conversion = to_parallel(model, k, rows, by=rank, found=found, calibrate=fit, consume=True)
    else:
        assert design is not None
        conversion = rewire(model, design, layers, batches=rows, calibrate=fit, consume=True)
    written = record(conversion, batches, src, ["sublayer", *sys.argv[1:]], seed)
    written["calibrated"] = calibrate and conversion.proof == "none"
    if found is not None:
        written["defects"] = found.to_dict()
    if k is not None:
        written["ranked_by"] = rank

    def fill(folder: Path) -> None:
        export(conversion.model, folder)
        write_atomically(folder / RECORD, json.dumps(written, indent=2) + "\n")

    write_folder(dst, fill, overwrite)
    if as_json:
        click.echo(json.dumps(written, indent=2))
    else:
        chosen = f"made parallel, by the {rank}: layers {', '.join(map(str, conversion.layers))}\n" if k else ""
        click.echo(f"{chosen}{conversion}")
        if conversion.proof == "none" and not calibrate:
            click.echo("hint: --calibrate rescales each sub-layer so that it counts as much as before", err=True)
    click.echo(f"wrote {dst}", err=True)


def _check(dst: Path | None, design: str | None, layers: str | None, defects: bool, k: int | None) -> None:
    """Options that contradict each other."""
    if design is not None and k is not None:
        raise click.UsageError("--to and --to-parallel both say what the new wiring is; give one of them")
    if design is None and k is None and not defects:
        raise click.UsageError(
            "say what to do: --to DESIGN or --to-parallel K, which write DST, or --defects, which only looks"
        )
    if (design is not None or k is not None) and dst is None:
        raise click.UsageError("the converted checkpoint needs a folder: sublayer convert SRC DST ...")
    if design is None and k is None and dst is not None:
        raise click.UsageError("--defects alone writes nothing; leave DST out, or give --to or --to-parallel")
    if layers is not None and design is None:
        raise click.UsageError("--layers goes with --to; --to-parallel chooses the layers itself")


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"a text is UTF-8, and {text} is not ({error.reason}): convert it first") from None
