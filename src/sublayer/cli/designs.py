"""`sublayer show` and `sublayer designs`."""

import json
from pathlib import Path

import click

from sublayer.notation import Design, parse, unsupported
from sublayer.notation import designs as catalogue


@click.command()
@click.argument("design")
@click.option("--latex", "form", flag_value="latex", help="Print the equations as LaTeX.")
@click.option("--code", "form", flag_value="code", help="Print the forward that is run.")
@click.option("--json", "form", flag_value="json", help="Print the design as JSON.")
@click.option("--text", "form", flag_value="text", help="Print the normal form only.")
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a diagram of the block to FILE.",
    metavar="FILE",
)
def show(design: str, form: str | None, svg: Path | None) -> None:
    """Print a design: its three sections, where each norm stands, and the shape of every matrix."""
    wiring = parse(design)
    if svg is not None:
        _write(svg, wiring.svg())
        click.echo(f"wrote {svg}", err=True)
        if form is None:
            return
    if form == "latex":
        click.echo(wiring.latex())
    elif form == "code":
        click.echo(code(wiring), nl=False)
    elif form == "json":
        click.echo(json.dumps({"text": str(wiring), "names": list(wiring.names), **wiring.to_dict()}, indent=2))
    elif form == "text":
        click.echo(str(wiring))
    else:
        click.echo(describe(wiring))


def describe(design: Design) -> str:
    """What `sublayer show` prints: name and citation, sections and placements, shapes."""
    from sublayer.notation.shapes import table

    head = []
    entries = [e for e in catalogue() if e.name in (design.name, *design.names)]
    entries.sort(key=lambda e: e.name != design.name)
    for entry in entries[:1]:
        head += [f"{entry.name}: {entry.title}", f"  {entry.citation}", f"  used: {entry.used}"]
        head += [f"  note: {entry.note}"] if entry.note else []
        also = [e.name for e in entries[1:]] + list(entry.aliases)
        head += [f"  also: {', '.join(also)}"] if also else []
        head.append("")
    return "\n".join([*head, design.explain(), "", table(design)])


def code(design: Design) -> str:
    """The forward of every section, as it is compiled into the model."""
    from sublayer.notation.code import forward_source

    sections = [("embed", design.section("embed"))]
    sections += [("block" if layers.is_whole else f"block{layers}", s) for layers, s in design.blocks]
    sections.append(("final", design.section("final")))
    parts = []
    for name, section in sections:
        parts.append(f"# {name}: {section.text}\n{forward_source(section)}")
    return "\n".join(parts)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the catalogue as JSON.")
@click.argument("words", nargs=-1)
def designs(as_json: bool, words: tuple[str, ...]) -> None:
    """List the named designs, or those whose entry has all WORDS in it."""

    def chosen(*texts: str) -> bool:
        text = " ".join(texts).lower()
        return all(w.lower() in text for w in words)

    found = [e for e in catalogue() if chosen(e.name, e.title, e.text, e.citation, e.used, *e.aliases)]
    missing = [u for u in unsupported() if chosen(u.name, u.reason, u.citation, *u.aliases)]
    if as_json:
        listed = [
            {
                "name": e.name,
                "title": e.title,
                "aliases": list(e.aliases),
                "equation": str(parse(e.name)),
                "citation": e.citation,
                "used": e.used,
                "note": e.note,
            }
            for e in found
        ]
        click.echo(
            json.dumps(
                {
                    "designs": listed,
                    "unsupported": [{"name": u.name, "reason": u.reason, "citation": u.citation} for u in missing],
                },
                indent=2,
            )
        )
        return
    for entry in found:
        click.echo(click.style(entry.name, bold=True) + (f"  ({', '.join(entry.aliases)})" if entry.aliases else ""))
        for line in str(parse(entry.name)).splitlines():
            click.echo(f"    {line}")
        click.echo(f"    {entry.citation}. {entry.used}")
    if missing:
        click.echo(click.style("\nKnown, but outside the notation:", bold=True))
        for u in missing:
            click.echo(f"  {u.name}: {u.reason} ({u.citation})")
    click.echo(f"\n{len(found)} designs" + (f", {len(missing)} outside the notation" if missing else ""))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from None
