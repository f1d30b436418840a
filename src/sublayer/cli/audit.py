"""`sublayer audit` and `sublayer diff`."""

import json
from pathlib import Path
from typing import Any

import click

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print the audit as JSON.")
@click.option("--svg", type=FILE, metavar="FILE", help="Write a diagram of the block to FILE.")
@click.option(
    "--expect", metavar="DESIGN", help="Exit with 1 unless the whole wiring is DESIGN, a name or an equation."
)
@click.option("--lock", type=FILE, metavar="FILE", help="Write the wiring to FILE, for --check.")
@click.option("--check", type=FILE, metavar="FILE", help="Exit with 1 unless the wiring is that of FILE.")
@click.option("--verify", is_flag=True, help="Read the model a second time, by torch.export, and compare.")
@click.option("--forecast", is_flag=True, help="Say how stream and gradient grow with depth, from the wiring alone.")
@click.option("--strict", is_flag=True, help="Exit with 1 if there is a finding of severity error.")
@click.pass_context
def audit(
    context: click.Context,
    model: str,
    as_json: bool,
    svg: Path | None,
    expect: str | None,
    lock: Path | None,
    check: Path | None,
    verify: bool,
    forecast: bool,
    strict: bool,
) -> None:
    """Read the wiring of a PyTorch model: the equation of every layer, and what the equations do not say.

    MODEL is a Hub id, a folder with a config.json, a config.json, or package.module:callable that returns a module. No
    weights are read, and no code of a checkpoint is run.
    """
    from sublayer.audit import Audit
    from sublayer.audit.lock import check_lock, read_lock, write_lock
    from sublayer.notation import parse
    from sublayer.whole_files import write_atomically

    if lock is not None and check is not None:
        raise click.UsageError("--lock writes a lock and --check compares with one; give one of them")
    # What can be wrong with the other arguments is said before the model is read, which takes longer.
    wanted = parse(expect) if expect is not None else None
    if check is not None:
        read_lock(check)
    from sublayer.audit.read import audit as run

    found: Audit = run(model, verify=verify)
    more: dict[str, Any] = {}
    said = []
    if wanted is not None:
        from sublayer.audit.diff import between
        from sublayer.audit.sides import Side, one_line

        name = wanted.name or one_line(wanted)
        difference = between(Side(name, design=wanted), Side(found.target, audit=found))
        more["expect"] = difference.to_dict()
        said.append(f"as expected: {difference.compared}" if difference.same else f"not as expected\n{difference}")
    if check is not None:
        checked = check_lock(found, check)
        more["check"] = checked.to_dict()
        hint = f"\n\nif this is meant, write the lock again: sublayer audit {model} --lock {check}"
        said.append(str(checked) if checked else f"{check} does not hold\n{checked}{hint}")
    if forecast:
        told = _forecast(found)
        more["forecast"] = told.to_dict()
        said.append(str(told))
    if as_json:
        click.echo(json.dumps({**found.to_dict(), **more}, indent=2))
    elif wanted is None and check is None:
        click.echo("\n\n".join([str(found), *said]))
    else:
        click.echo("\n\n".join(said))
    if svg is not None:
        write_atomically(svg, found.svg())
        click.echo(f"wrote {svg}", err=True)
    if lock is not None:
        write_lock(found, lock)
        click.echo(f"wrote {lock}", err=True)
    errors = [finding for finding in found.findings if finding.severity == "error"]
    if strict and errors and (wanted is not None or check is not None) and not as_json:
        click.echo("\n".join(map(str, errors)))
    broken = strict and bool(errors)
    apart = not more.get("expect", {}).get("same", True) or not more.get("check", {}).get("held", True)
    context.exit(1 if broken or apart else 0)


def _forecast(found: Any) -> Any:
    """The depth forecast of the main design."""
    from sublayer.audit import AuditError
    from sublayer.audit.forecast import forecast, fresh_of

    if found.design is None:
        reason = found.unknown or (found.main.unknown if found.main else "") or "no layers were found"
        raise AuditError(f"a forecast needs a design that is known; of {found.target} it is unknown, because {reason}")
    return forecast(found.design, fresh=fresh_of(found.main))


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--json", "as_json", is_flag=True, help="Print the difference as JSON.")
@click.pass_context
def diff(context: click.Context, a: str, b: str, as_json: bool) -> None:
    """Say in words how the wiring of B differs from that of A; exit with 1 if it does, or if that is unknown.

    A and B are models, as `sublayer audit` takes them, or designs: a catalogue name or an equation. A name that is
    both is the design, unless a file has it; the Hub's GPT-2 is openai-community/gpt2.
    """
    from sublayer.audit.diff import diff as compare

    found = compare(a, b)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
    context.exit(0 if found.same else 1)
