"""Random designs as trees, written out as text in more than one way."""

import random
from dataclasses import dataclass, field

from hypothesis import strategies as st

OPS = ("attn", "ffn", "norm", "layernorm", "rmsnorm", "dyt", "scale", "gate", "dot", "stop")
FACTORS = (
    "2*{}",
    "0.5*{}",
    "layer*{}",
    "{}/depth",
    "{}/sqrt(layer)",
    "(2*depth)**0.25*{}",
    "{}*layer/depth",
    "(layer + 1)*{}",
    "3**0.5*{}",
    "{}*0.1",
)
EMBED_VALUES = ("e", "norm(e)", "0.5*e", "e + norm(e)")


@dataclass
class Term:
    """``factor * op_label(sum)``, or a name when ``op`` is empty."""

    name: str = ""
    op: str = ""
    label: str = ""
    factor: str = "{}"
    inner: "list[Term]" = field(default_factory=list)


@dataclass
class Spec:
    """Sections as statements of (target, sum of terms)."""

    sections: list[tuple[str, list[tuple[str, list[Term]]]]]

    def text(self, rng: random.Random | None = None) -> str:
        """The design as text. With ``rng``: other local names, other orders of sums, other white space, inlined or
        not."""
        lines = []
        for label, statements in self.sections:
            names: dict[str, str] = {}
            if rng:
                locals_ = sorted({t for t, _ in statements if t not in ("x", "r")})
                fresh = rng.sample(["h", "tmp", "q1", "attn_out", "zz", "norm2x", "value"], len(locals_))
                names = dict(zip(locals_, fresh, strict=True))
            body = [f"{names.get(t, t)}{_space(rng)}={_space(rng)}{_sum(terms, names, rng)}" for t, terms in statements]
            separator = rng.choice(["; ", ";", "\n", "  ;\n  ", "\n# a remark; x = y\n"]) if rng else "; "
            lines.append(f"{label}:{_space(rng)}" + separator.join(body))
        return "\n".join(lines)


def _space(rng: random.Random | None) -> str:
    return rng.choice(["", " ", "   "]) if rng else " "


def _sum(terms: list[Term], names: dict[str, str], rng: random.Random | None) -> str:
    texts = [_term(t, names, rng) for t in terms]
    if rng:
        rng.shuffle(texts)
    return f"{_space(rng)}+{_space(rng)}".join(texts)


def _term(term: Term, names: dict[str, str], rng: random.Random | None) -> str:
    if not term.op:
        text = names.get(term.name, term.name)
    else:
        label = f"_{term.label}" if term.label else ""
        text = f"{term.op}{label}({_sum(term.inner, names, rng)})"
    text = term.factor.format(text)
    return f"({text})" if rng and rng.random() < 0.1 else text


def random_spec(rng: random.Random, ops: tuple[str, ...] = OPS, max_size: int = 3) -> Spec:
    """A random design: sometimes with a carried stream, sometimes with layer ranges, always valid."""
    carried = rng.random() < 0.4
    sections = []
    if carried or rng.random() < 0.3:
        statements = [("x", [_embedded(rng)])]
        if carried:
            statements.append(("r", [_embedded(rng)]))
        sections.append(("embed", statements))
    for label in ["block[:25%]", "block[25%:]"] if rng.random() < 0.2 else ["block"]:
        sections.append((label, _block(rng, ops, carried, max_size)))
    if rng.random() < 0.3:
        sections.append(("final", [("x", [Term("x"), Term(op="norm", inner=[Term("r" if carried else "x")])])]))
    return Spec(sections)


def _embedded(rng: random.Random) -> Term:
    return rng.choice([Term("e"), Term(op="norm", inner=[Term("e")]), Term("e", factor="0.5*{}")])


def _block(rng: random.Random, ops: tuple[str, ...], carried: bool, max_size: int) -> list[tuple[str, list[Term]]]:
    known = ["x", *(["r"] if carried else [])]
    statements: list[tuple[str, list[Term]]] = []
    for i in range(rng.randint(1, 5)):
        target = rng.choice(["x", "x", *(["r"] if carried else []), f"p{i}"])
        statements.append((target, _random_sum(rng, known, ops, rng.randint(1, max_size))))
        if target not in known:
            known.append(target)
    if statements[-1][0] != "x":
        statements.append(("x", [Term("x"), Term(known[-1], factor="0.5*{}")]))
    return statements


def _random_sum(rng: random.Random, known: list[str], ops: tuple[str, ...], size: int) -> list[Term]:
    """The first term is a plain value with factor 1 and all factors are positive, so that nothing cancels."""
    terms = [Term(rng.choice(known))]
    for _ in range(size):
        inner = _random_sum(rng, known, ops, size - 1) if size > 1 and rng.random() < 0.5 else [Term(rng.choice(known))]
        factor = rng.choice(FACTORS) if rng.random() < 0.3 else "{}"
        terms.append(Term(op=rng.choice(ops), label=rng.choice(["", "", "", "a", "b2"]), factor=factor, inner=inner))
    return terms


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    return random_spec(random.Random(draw(st.integers(0, 2**48))))
