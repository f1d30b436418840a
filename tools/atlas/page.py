"""The atlas as one page without scripts: figures, models by wiring, what is unknown, and every audit in full."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import outcome, reasons, said
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sublayer.notation import designs, parse

HERE = Path(__file__).resolve().parent
STYLE = HERE.parents[1] / "src" / "sublayer" / "report" / "templates"
USUAL = {"embed": "x = e", "final": "x = norm(x)"}


@dataclass(frozen=True)
class Row:
    """One stack of one model."""

    model: dict[str, Any]
    stack: dict[str, Any]

    @property
    def block(self) -> str:
        """The equations of its layers: what it is grouped by."""
        return "\n".join(f"{g['layers']}: {g['equation']}" for g in self.equations) if self.several else self.first

    @property
    def equations(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.stack["layers"]
        return found

    @property
    def several(self) -> bool:
        return len(self.equations) > 1

    @property
    def first(self) -> str:
        return str(self.equations[0]["equation"])

    @property
    def around(self) -> list[str]:
        """Embed and final where they are not the usual ones."""
        return [f"{end}: {self.stack[end]}" for end, usual in USUAL.items() if self.stack[end] != usual]

    @property
    def facts(self) -> list[str]:
        """What is known of the sub-layers, with the layers where a form does not stand in all of them."""
        found = []
        for group in self.equations:
            for branch in group["branches"]:
                where = group["layers"] if self.several else "" if branch["layers"] == "all" else branch["layers"]
                if self.several and branch["layers"] != "all":
                    where = branch["layers"]
                found.append(f"{branch['site']}: {branch['said']}" + (f" (layers {where})" if where else ""))
            found += [f"computed in vain: {text}" for text in group["dropped"]]
        return list(dict.fromkeys(found))

    @property
    def remarks(self) -> list[str]:
        """Notes, repairs and assumptions."""
        notes = [*self.stack["notes"], *(note for group in self.equations for note in group["notes"])]
        dead = self.model["dead_parameters"]
        return list(
            dict.fromkeys(
                [
                    *notes,
                    *(f"config completed: {text}" for text in self.model.get("repairs", ())),
                    *(f"assumed: {text}" for text in self.model["assumptions"]),
                    *([f"{dead} parameters that nothing reads"] if dead else []),
                ]
            )
        )


@dataclass(frozen=True)
class Group:
    """Stacks of one block."""

    name: str
    title: str
    block: str
    aliases: tuple[str, ...]
    picture: Markup
    rows: tuple[Row, ...]


def write(atlas: dict[str, Any]) -> str:
    """The page of an atlas."""
    environment = Environment(
        loader=FileSystemLoader([HERE, STYLE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    models = atlas["models"]
    named, unnamed, single = _groups(models)
    unknown = [(m, reasons(m)) for m in models if m["state"] == "traced" and outcome(m) != "read"]
    context = {
        "figures": said(atlas["figures"]),
        "raw": atlas,
        "named": named,
        "unnamed": unnamed,
        "single": single,
        "unknown": unknown,
        "failed": [(m, reasons(m)) for m in models if m["state"] != "traced"],
        "models": [m for m in models if m["state"] == "traced"],
    }
    return environment.get_template("page.html").render(context)


def _groups(models: list[dict[str, Any]]) -> tuple[list[Group], list[Group], list[Row]]:
    """Blocks with a name, blocks without one that several models have, and the rest; the larger groups first."""
    rows = [Row(m, s) for m in models for s in m.get("stacks", ()) if all(g["equation"] for g in s["layers"])]
    entries = {entry.name: entry for entry in designs()}
    counts = Counter(_key(row) for row in rows)
    named: list[Group] = []
    unnamed: list[Group] = []
    for (family, block), count in counts.most_common():
        members = tuple(row for row in rows if _key(row) == (family, block))
        if family:
            picture = Markup(parse(family).svg())  # our own drawing, escaped where it was made
            entry = entries[family]
            named.append(Group(family, family, parse(family).block, tuple(entry.aliases), picture, members))
        elif count > 1:
            unnamed.append(Group(f"wiring-{len(unnamed) + 1}", "", block, (), Markup(""), members))
    single = [row for row in rows if not row.stack["group"] and counts[_key(row)] == 1]
    return named, unnamed, single


def _key(row: Row) -> tuple[str, str]:
    family = row.stack["group"]
    return (family, "") if family else ("", row.block)
