"""What `sublayer train --recipe` adds to a run: its settings, and the dry run."""

import json
from typing import Any

import click

# A changed length or budget makes one phase of the recipe's several.
_ONE_PHASE = ("seq", "steps", "tokens")


def settings_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run of a recipe; what it does otherwise is told on standard error."""
    from sublayer.recipes import load
    from sublayer.train.from_recipe import departures, settings

    recipe = load(name)
    chosen = settings(recipe, **given)
    click.echo(f"{recipe.name}: {recipe.about}", err=True)
    for line in departures(recipe, chosen):
        click.echo(f"  {line}", err=True)
    return {"size": "large", **chosen}  # what a recipe leaves open, such as the rows of an evaluation


def forecast(
    name: str,
    given: dict[str, Any],
    gpus: int,
    memory: float,
    flops: float | None,
    mfu: float,
    as_json: bool,
) -> None:
    """Print what the recipe takes at full scale; ``memory`` is in GB."""
    from sublayer.recipes import Phase, load
    from sublayer.train import TrainSpec
    from sublayer.train.dry_run import H100, Machine, dry_run
    from sublayer.train.from_recipe import settings

    recipe = load(name)
    budget = {key: given[key] for key in _ONE_PHASE if given.get(key) is not None}
    # the size of the model may be changed, and it is still no trial: the rows stay the recipe's
    whole = {key: value for key, value in given.items() if key not in ("layers", "steps", "tokens", "size")}
    plain = settings(recipe, **whole)
    changed = {key: given[key] for key in ("layers", "steps", "tokens") if given.get(key) is not None}
    if changed.keys() & {"steps", "tokens"}:
        plain.pop("steps")
    spec = TrainSpec.from_dict({key: value for key, value in {**plain, **changed}.items() if value is not None})
    rows = recipe.training["global_batch"]
    steps = spec.steps if spec.steps is not None else -(-(spec.tokens or 0) // (rows * spec.seq))
    phases = (Phase(steps, spec.seq),) if budget else None
    result = dry_run(recipe, spec, Machine(gpus, memory * 1e9, flops or H100, mfu), phases)
    click.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False) if as_json else str(result))
