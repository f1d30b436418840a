"""`Design`: a wiring in normal form, and `parse`, which reads one from text or from the catalogue."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from sublayer.notation.catalogue import designs, resolve
from sublayer.notation.errors import DesignError
from sublayer.notation.normal import NormalForm, normal_form
from sublayer.notation.program import Add, Section
from sublayer.notation.scalar import ScalarError
from sublayer.notation.text import MAX_TEXT, LayerRange, check_size
from sublayer.notation.wiring import read

FORMAT = 1  # version of Design.to_dict
MOST_LAYERS = 100_000  # the deepest published Transformers have some thousands


class Design:
    """How the blocks of a model are wired. Immutable; two designs are equal iff their normal forms are.

    Attributes:
        name: the catalogue name it was asked for by, else ``None``. Not part of equality.
        embed, block, final: text of each section in normal form.
        streams: names of the values that live from layer to layer, ``x`` first.
        ranges: the layer ranges of the block sections; one, covering all, unless ``block[a:b]`` is used.
    """

    __slots__ = ("_fits", "_form", "_text", "name")
    _fits: set[int]  # depths that were checked; `layer` asks again for each layer
    _form: NormalForm
    _text: str
    name: str | None

    def __init__(self, form: NormalForm, name: str | None = None) -> None:
        object.__setattr__(self, "_form", form)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_text", _print(form))
        object.__setattr__(self, "_fits", set())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Design cannot be changed; parse a new one instead of setting {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Design cannot be changed; {name} cannot be deleted")

    @property
    def embed(self) -> str:
        return self._form.embed.text

    @property
    def block(self) -> str:
        """Text of the block; of every range, each labelled, where there are several."""
        blocks = self._form.blocks
        if len(blocks) == 1:
            return blocks[0][1].text
        return "\n".join(f"block{layers}: {section.text}" for layers, section in blocks)

    @property
    def final(self) -> str:
        return self._form.final.text

    @property
    def streams(self) -> tuple[str, ...]:
        return self._form.streams

    @property
    def ranges(self) -> tuple[LayerRange, ...]:
        return tuple(layers for layers, _ in self._form.blocks)

    @property
    def blocks(self) -> tuple[tuple[LayerRange, Section], ...]:
        """Each layer range with its block."""
        return self._form.blocks

    def section(self, which: Literal["embed", "final"]) -> Section:
        """The embed or the final section."""
        return self._form.embed if which == "embed" else self._form.final

    def layer(self, index: int, depth: int) -> Section:
        """The block that layer ``index`` (0-based) of ``depth`` runs. Raises DesignError if the ranges do not tile
        the depth."""
        if not 0 <= index < depth:
            raise DesignError(f"layer must lie within 0..{depth - 1}, got {index}")
        self.check_depth(depth)
        for layers, section in self._form.blocks:
            start, stop = layers.resolve(depth)
            if start <= index < stop:
                return section
        raise DesignError(f"no block covers layer {index} of {depth}")

    def check_depth(self, depth: int) -> None:
        """Raise DesignError unless the layer ranges cover each of ``depth`` layers once and every scalar is finite
        there."""
        if depth in self._fits:
            return
        if depth < 0:
            raise DesignError(f"a depth is at least 0, got {depth}")
        if depth > MOST_LAYERS:  # each is looked at
            raise DesignError(f"a depth is at most {MOST_LAYERS:,}, got {depth:,}: give fewer layers")
        covered = 0
        for layers, _ in sorted(self._form.blocks, key=lambda item: item[0].resolve(depth)):
            start, stop = layers.resolve(depth)
            if start != covered or not start <= stop <= depth:
                raise DesignError(
                    f"block sections must tile the {depth} layers exactly: block{layers} covers {start}..{stop - 1}, "
                    f"but layer {covered} comes next",
                    expected="ranges such as block[:25%] and block[25%:]",
                )
            covered = stop
        if covered != depth:
            raise DesignError(
                f"block sections must tile the {depth} layers exactly: layers {covered}..{depth - 1} are not covered",
                expected="a last range such as block[25%:]",
            )
        for layers, section in self._form.blocks:
            start, stop = layers.resolve(depth)
            self._check_scalars(section, range(start + 1, stop + 1), depth)
        self._check_scalars(self._form.embed, range(1), depth)
        self._check_scalars(self._form.final, range(1), depth)
        self._fits.add(depth)

    @staticmethod
    def _check_scalars(section: Section, layers: range, depth: int) -> None:
        adds = (step for step in section.steps if isinstance(step, Add))
        # a rational number was checked where it was read
        varying = [scalar for step in adds for scalar, _ in step.terms if scalar.constant is None]
        for layer in layers if varying else ():
            for scalar in varying:
                try:
                    scalar.value(layer, depth)
                except ScalarError as error:
                    raise DesignError(
                        f"every factor must be a finite number at every layer: {error}", section.text
                    ) from None

    def named(self, name: str | None) -> "Design":
        """The same design under another name."""
        return Design(self._form, name)

    @property
    def names(self) -> tuple[str, ...]:
        """Catalogue names of this wiring."""
        return _catalogue_names().get(self._text, ())

    def latex(self) -> str:
        """The equations as a LaTeX ``aligned`` environment."""
        from sublayer.notation.latex import latex

        return latex(self)

    def svg(self) -> str:
        """A diagram of one block: the residual stream as a thick vertical line, norms as dots on or off it."""
        from sublayer.notation.svg import svg

        return svg(self)

    def explain(self) -> str:
        """The three sections, and in words where each sub-layer's norm stands."""
        from sublayer.notation.explain import explain

        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; `from_dict` reads it back."""
        return {
            "format": FORMAT,
            "name": self.name,
            "embed": self.embed,
            "block": [{"layers": str(layers), "equation": section.text} for layers, section in self._form.blocks],
            "final": self.final,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Design":
        """Read what `to_dict` wrote. Raises DesignError for anything else."""
        try:
            if data["format"] != FORMAT:
                raise DesignError(f"a design record has format {FORMAT}, got {data['format']!r}")
            blocks = [f"block{'' if b['layers'] == '[:]' else b['layers']}: {b['equation']}" for b in data["block"]]
            text = "\n".join([f"embed: {data['embed']}", *blocks, f"final: {data['final']}"])
            name = data.get("name")
        except (KeyError, TypeError, AttributeError) as error:
            raise DesignError(
                f"a design record has format, embed, block and final: {error!r} in {str(data)[:80]}"
            ) from None
        if not (name is None or isinstance(name, str)):
            raise DesignError(f"a design's name is text or nothing, got {name!r}")
        return parse(text).named(name)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Design({self._text!r})"

    def _repr_html_(self) -> str:
        return self.svg()

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Design) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (self._text, self.name))


def _restore(text: str, name: str | None) -> Design:
    return parse(text).named(name)


def parse(text_or_name: "str | Design") -> Design:
    """Read a design from an equation or a catalogue name.

    Raises:
        DesignError: with the text, a caret under the fault, what was expected and the nearest valid spelling;
        nothing else.
    """
    if isinstance(text_or_name, Design):
        return text_or_name
    if not isinstance(text_or_name, str):
        raise DesignError(
            f"a design is text, got {type(text_or_name).__name__}", expected="an equation or a catalogue name"
        )
    return _parse(text_or_name)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Design:
    entry = resolve(text) if len(text) <= MAX_TEXT else None
    if entry is not None:
        return Design(_normalise(entry.text), entry.name)
    return Design(_normalise(text))


@lru_cache(maxsize=1024)
def _normalise(text: str) -> NormalForm:
    form = normal_form(read(text))
    joined = _joined(form)
    # Joining ranges may leave a stream that nothing reads: read what will be printed, once more.
    form = form if joined is form else normal_form(read(_print(joined)))
    check_size(_print(form))  # names that stand for values were put in place, so it may be larger than `text`
    return form


def _joined(form: NormalForm) -> NormalForm:
    """The same form with neighbouring layer ranges of one equation made one range."""
    blocks: list[tuple[LayerRange, Section]] = []
    for layers, section in form.blocks:
        if blocks and blocks[-1][1].text == section.text and blocks[-1][0].stop == layers.start:
            blocks[-1] = (LayerRange(blocks[-1][0].start, layers.stop), section)
        else:
            blocks.append((layers, section))
    return form if len(blocks) == len(form.blocks) else replace(form, blocks=tuple(blocks))


def _print(form: NormalForm) -> str:
    """The text of a normal form: defaults left out, a lone block without its label."""
    lines = []
    if form.embed.text != "x = e":
        lines.append(f"embed: {form.embed.text}")
    for layers, section in form.blocks:
        lines.append(f"block{'' if layers.is_whole else layers}: {section.text}")
    if form.final.text != ("x = x" if form.normalised else "x = norm(x)"):
        lines.append(f"final: {form.final.text}")
    if len(lines) == 1 and lines[0].startswith("block: "):
        return lines[0].removeprefix("block: ")
    return "\n".join(lines)


@lru_cache(maxsize=1)
def _catalogue_names() -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {}
    for entry in designs():
        text = str(parse(entry.name))
        names[text] = (*names.get(text, ()), entry.name)
    return names
