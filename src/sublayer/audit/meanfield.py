"""Mean products of the values of a section with fresh weights, forwards, and of their gradients, backwards.

For every pair of values: the mean over channels of their product at one position, and at two different positions. A
sub-layer with fresh weights is a random map: what it writes is independent of what it reads; how large it is, and how
alike at two positions, follows from the deviation of the weights. Sums and norms are linear once the RMS is known.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.polynomial.hermite_e import hermegauss, hermeval
from numpy.typing import NDArray

from sublayer.notation.graph import BRANCHES, NORMS
from sublayer.notation.program import Add, Call, Section

Pair = tuple[float, float]  # mean product at one position, and at two different ones
Array = NDArray[np.float64]

NODES, WEIGHTS = hermegauss(48)
WEIGHTS = WEIGHTS / math.sqrt(2 * math.pi)
# The first Hermite coefficients of a function are these rows times its values at the nodes.
HERMITE = np.stack([hermeval(NODES, [0] * k + [1]) * WEIGHTS / math.sqrt(math.factorial(k)) for k in range(8)])
EULER = 0.5772156649
MIXING = ("attn", "cross", "dot")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda z: np.maximum(z, 0.0),
    "gelu": lambda z: z * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "tanh": np.tanh,
}


@dataclass(frozen=True)
class Fresh:
    """The statistics of fresh weights and of the input.

    Attributes:
        width: channels of the stream.
        std: deviation of every matrix at the start (``initializer_range``).
        embedding: RMS of the embedding output; None: ``std``.
        ratio: width of the FFN over that of the stream.
        activation, gated: what the FFN does between its matrices: relu, gelu, silu, tanh.
        tokens: length of the sequence; its tokens are taken as all different.
        causal: whether attention sees the past only.
        scale: start of ``scale``; None: LayerScale's rule, 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond.
        gate, dyt: start of ``gate`` (0 is ReZero) and of alpha in ``dyt``.
        eps: the constant in the norms.
    """

    width: int = 768
    std: float = 0.02
    embedding: float | None = None
    ratio: float = 4.0
    activation: str = "gelu"
    gated: bool = False
    tokens: int = 128
    causal: bool = True
    scale: float | None = None
    gate: float = 0.0
    dyt: float = 0.5
    eps: float = 1e-5


@dataclass
class State:
    """Mean products of the streams (or of the gradients with respect to them), ``[streams, streams, 2]``."""

    names: tuple[str, ...]
    products: Array

    def same(self, name: str) -> float:
        """Mean square of one stream."""
        i = self.names.index(name)
        return float(self.products[i, i, 0])


class Maps:
    """What the operators with fresh weights do to mean products, forwards and backwards."""

    def __init__(self, fresh: Fresh, gains: Mapping[str, float], depth: int) -> None:
        self.fresh, self.gains = fresh, gains
        n = fresh.tokens
        harmonic = math.log(n) + EULER + 0.5 / n if n > 1 else 1.0
        scale = fresh.scale
        if scale is None:
            scale = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        self.factor = {"scale": scale, "gate": fresh.gate, "stop": 1.0}
        self.matrix = fresh.width * fresh.std**2  # by which a matrix of width x anything multiplies a mean square
        self.out = self.matrix * fresh.ratio  # and the second matrix of an FFN
        # Sums over the rows and columns of the matrix that averages over positions, see `attend` and `attend_back`.
        self.rows_two = 2 / n if fresh.causal else 1 / n
        self.columns = (2 - harmonic / n) if fresh.causal else 1.0
        self.columns_two = (n - harmonic) / (n * max(n - 1, 1)) if fresh.causal else 1 / n

    def spread(self, focus: float) -> tuple[float, float]:
        """How attention spreads where its scores have variance ``focus``: see `_spread`."""
        return _spread(self.fresh.tokens, self.fresh.causal, _rounded(math.sqrt(max(focus, 0.0))))

    def size(self, op: str) -> float:
        """By which an operator's matrices multiply the mean square, both together."""
        if op in self.gains:
            return self.gains[op] ** 2
        if op == "dot":
            return 1.0
        return self.matrix**2 if op in MIXING or op in ("mixer", "op") else self.matrix * self.out

    def focus(self, read: Pair) -> float:
        """Variance of the scores of attention."""
        return (self.matrix * read[0]) ** 2 * (1 - min(1.0, max(read[1], 0.0) / read[0])) if read[0] else 0.0

    def attend(self, read: Pair, focus: float) -> Pair:
        """The average over positions: it keeps what positions share and thins out the rest."""
        same, two = read
        return two + (same - two) * self.spread(focus)[0], two + (same - two) * self.rows_two

    def attend_back(self, back: Pair, focus: float) -> Pair:
        """Its transpose: in a causal model early positions gather more."""
        same, two = back
        return two * self.columns + (same - two) * self.spread(focus)[0], two + (same - two) * self.columns_two

    def self_weight(self, read: Pair) -> float:
        """Weight of a position on itself in ``dot``, whose scores are plain products over the width."""
        excess = min(self.fresh.width * (read[0] - read[1]), 50.0)
        return math.exp(excess) / (math.exp(excess) + (self.fresh.tokens - 1) / (2 if self.fresh.causal else 1))

    def bend(self, read: Pair) -> "Bend":
        """The FFN's activation on pre-activations that fresh weights make of what it reads."""
        return _bend(self.fresh.activation, self.fresh.gated, _rounded(math.sqrt(max(self.matrix * read[0], 1e-300))))

    def share(self, pair: Pair) -> float:
        """How alike two positions are, -1 to 1."""
        return min(1.0, max(-1.0, pair[1] / pair[0])) if pair[0] > 0 else 0.0

    def ffn_scale(self, op: str) -> float:
        """The second matrix: such that a given gain holds where an FFN reads values of RMS 1."""
        if op not in self.gains:
            return self.out
        return self.gains[op] ** 2 / max(self.bend((1.0, 1.0)).square, 1e-300)


@lru_cache(maxsize=4096)
def _spread(tokens: int, causal: bool, deviation: float) -> tuple[float, float]:
    """For normal scores, means over positions: the sum of squared weights, and the size of the softmax's derivative
    (the sum over places of the squared weight times the squared distance of its value from the average)."""
    rows = _scores(tokens)
    one = np.exp(deviation * (rows - rows.max(axis=1, keepdims=True)))
    sums = [np.cumsum(one**k, axis=1) if causal else (one**k).sum(axis=1) for k in (1, 2, 3)]
    kept = sums[0] > 1e-100
    two, three = sums[1][kept] / sums[0][kept] ** 2, sums[2][kept] / sums[0][kept] ** 3
    return float(two.mean()), float(np.maximum(two - 2 * three + two**2, 0.0).mean())


@lru_cache(maxsize=8)
def _scores(tokens: int) -> Array:
    return np.random.default_rng(0).standard_normal((16, tokens))


@dataclass(frozen=True)
class Bend:
    """An activation at one size of its input: mean square, mean squared slope, and their parts by Hermite order."""

    square: float
    slope: float
    parts: tuple[float, ...] = field(repr=False)
    slope_parts: tuple[float, ...] = field(repr=False)

    def two(self, share: float, slope: bool = False) -> float:
        """The mean product at two positions whose inputs have correlation ``share``."""
        parts, total = (self.slope_parts, self.slope) if slope else (self.parts, self.square)
        found = sum(p * share**k for k, p in enumerate(parts))
        return found + max(total - sum(parts), 0.0) * share ** len(parts)


def _averaged(products: Array, source: int, target: int, weight: float) -> None:
    """Set the products of ``target`` with all others: a mean of ``source`` over positions, ``weight`` on its own."""
    row, own = products[source].copy(), products[target, target].copy()
    row[:, 0] = weight * row[:, 0] + (1 - weight) * row[:, 1]
    products[target], products[:, target] = row, row
    products[target, target] = own


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


@lru_cache(maxsize=4096)
def _bend(activation: str, gated: bool, deviation: float) -> Bend:
    act = ACTIVATIONS.get(activation.removeprefix("new_").split("_")[0], ACTIVATIONS["gelu"])
    z = deviation * NODES
    values, step = act(z), 1e-4 * deviation
    slopes = (act(z + step) - act(z - step)) / (2 * step)

    plain = tuple(float(p) for p in (HERMITE @ values) ** 2)
    tilted = tuple(float(p) for p in (HERMITE @ slopes) ** 2)
    square, slope = float(WEIGHTS @ values**2), float(WEIGHTS @ slopes**2)
    if not gated:
        return Bend(square, slope, plain, tilted)
    # act(a) * b with b of the same size: the product's square, and the slopes towards a and towards b.
    size = deviation**2
    up = (0.0, *(p * size for p in plain))
    down = [p + q for p, q in zip((*plain, 0.0), (0.0, *(t * size for t in tilted)), strict=True)]
    return Bend(square * size, square + slope * size, up, tuple(down))


class Tape:
    """One section at one layer: the products of all its values forwards, then of their gradients backwards."""

    def __init__(self, section: Section, maps: Maps, layer: int, depth: int) -> None:
        self.section, self.maps, self.layer, self.depth = section, maps, layer, depth
        self.place = {v: i for i, v in enumerate((*section.inputs, *section.step))}
        self.names: tuple[str, ...] = ()
        self.factors: dict[str, list[tuple[float, int]]] = {}
        self.weight_gradient = 0.0
        self.products: Array = np.zeros((0, 0, 2))

    def _factors(self, step: Add | Call) -> list[tuple[float, int]]:
        """The (factor, place) pairs of a step that is a weighted sum; a norm is one, once the RMS is known."""
        if isinstance(step, Add):
            return [(scalar.value(self.layer, self.depth), self.place[term]) for scalar, term in step.terms]
        read = self.place[step.args[0]]
        op = step.site.op
        if op == "dyt":
            bend = _bend("tanh", False, _rounded(self.maps.fresh.dyt * math.sqrt(self._pair(read)[0]) + 1e-150))
            return [(self.maps.fresh.dyt * math.sqrt(bend.slope_parts[0]), read)]
        if op in NORMS:
            return [(1 / math.sqrt(self._pair(read)[0] + self.maps.fresh.eps), read)]
        return [(self.maps.factor[op], read)]

    def _pair(self, place: int) -> Pair:
        return float(self.products[place, place, 0]), float(self.products[place, place, 1])

    def forward(self, state: State) -> State:
        """The streams that leave the section."""
        count = len(self.place)
        self.names = state.names
        self.products = np.zeros((count, count, 2))
        given = [state.names.index(v) for v in self.section.inputs]
        self.products[: len(given), : len(given)] = state.products[np.ix_(given, given)]
        for step in self.section.steps:
            self._run(step)
        # The embedding output stays what it was for the layers that read it.
        names = tuple(dict.fromkeys([*self.section.streams, *(["e"] if "e" in state.names else [])]))
        ends = dict(self.section.outputs)
        wide = np.zeros((count + 1, count + 1, 2))
        wide[:count, :count] = self.products
        places = [self.place[ends[n]] if n in ends else self.place.get("e", count) for n in names]
        if "e" in names and "e" not in self.place:
            wide[count, count] = state.products[state.names.index("e"), state.names.index("e")]
        return State(names, wide[np.ix_(places, places)])

    def _run(self, step: Add | Call) -> None:
        maps, here = self.maps, self.place[step.value]
        own = self.products
        if isinstance(step, Add) or step.site.op not in BRANCHES:
            factors = self.factors[step.value] = self._factors(step)
            row = np.zeros_like(own[here])
            for c, i in factors:
                row += c * own[i]
            own[here], own[:, here] = row, row
            own[here, here] = 0.0
            for c, i in factors:
                own[here, here] += c * row[i]
            if isinstance(step, Call) and step.site.op == "dyt":
                pair = self._pair(self.place[step.args[0]])
                bend = _bend("tanh", False, _rounded(maps.fresh.dyt * math.sqrt(pair[0]) + 1e-150))
                own[here, here] = bend.square, bend.two(maps.share(pair))
            return
        read = self.place[step.args[0]]
        own[here, here] = self._branch(step, self._pair(read), self._pair(read))
        for other in self.section.steps:
            if other is step:
                break
            if isinstance(other, Call) and other.site == step.site:  # the same weights: alike where what is read is
                between = (
                    float(own[read, self.place[other.args[0]], 0]),
                    float(own[read, self.place[other.args[0]], 1]),
                )
                own[here, self.place[other.value]] = self._branch(step, between, self._pair(read))
                own[self.place[other.value], here] = own[here, self.place[other.value]]
        if step.site.op == "dot":
            weight = maps.self_weight(self._pair(read))
            _averaged(own, read, here, weight)

    def _branch(self, step: Call, read: Pair, own: Pair) -> Pair:
        """Mean products of what a sub-layer writes; ``own`` are those of what it reads, which set its working point."""
        maps, op = self.maps, step.site.op
        if op == "cross":
            return maps.size(op), maps.size(op)  # it reads a memory, taken as normed and alike at all positions
        if op == "dot":
            w = maps.self_weight(own)
            mean = maps.attend(read, 0.0)
            return w * w * read[0] + (1 - w * w) * mean[0], w * w * read[1] + (1 - w * w) * mean[1]
        if op == "attn":
            mixed = maps.attend(read, maps.focus(own))
            return maps.size(op) * mixed[0], maps.size(op) * mixed[1]
        if op in ("ffn", "moe") and own[0] > 0:
            bend, scale = maps.bend(own), maps.ffn_scale(op)
            limit = [min(1.0, max(-1.0, r / own[0])) for r in read]
            return scale * bend.two(limit[0]), scale * bend.two(limit[1])
        return maps.size(op) * read[0], maps.size(op) * read[1]

    def backward(self, back: State) -> State:
        """The gradients with respect to the streams that enter, from those with respect to the streams that leave."""
        count, ends = len(self.place), dict(self.section.outputs)
        calls = [s for s in self.section.steps if isinstance(s, Call) and s.site.op in BRANCHES]
        extra = {c.value: count + i for i, c in enumerate(calls)}  # what each sub-layer sends back, before it is added
        aside = count + len(calls)  # the gradient of e where this section does not read it
        total = aside + 1
        g = np.zeros((total, total, 2))
        targets = [self.place[ends[n]] if n in ends else self.place.get("e", aside) for n in back.names]
        for i, one in enumerate(targets):
            for j, two in enumerate(targets):  # two streams may leave as one value
                g[one, two] += back.products[i, j]
        self.weight_gradient = 0.0
        done: list[Call] = []
        for step in reversed(self.section.steps):
            here = self.place[step.value]
            if isinstance(step, Add) or step.site.op not in BRANCHES:
                if isinstance(step, Call) and step.site.op == "stop":
                    continue
                for c, i in self.factors[step.value]:
                    g[i] += c * g[here]
                    g[:, i] += c * g[:, here]
                continue
            sent, read = extra[step.value], self.place[step.args[0]]
            pair = self._pair(read)
            own = float(g[here, here, 0]), float(g[here, here, 1])
            g[sent, sent] = self._branch_back(step, own, pair)
            if step.site.op == "dot":
                _averaged(g, here, sent, self.maps.self_weight(pair))
            self.weight_gradient += self._on_weights(step, own, pair, self._pair(here))
            for other in done:
                if other.site == step.site:
                    between = float(g[here, self.place[other.value], 0]), float(g[here, self.place[other.value], 1])
                    g[sent, extra[other.value]] = g[extra[other.value], sent] = self._branch_back(step, between, pair)
            done.append(step)
            g[read] += g[sent]
            g[:, read] += g[:, sent]
        places = [self.place.get(n, aside) for n in self.names]
        return State(self.names, g[np.ix_(places, places)])

    def _branch_back(self, step: Call, back: Pair, read: Pair) -> Pair:
        maps, op = self.maps, step.site.op
        if op == "cross":
            return 0.0, 0.0
        if op in ("ffn", "moe") and read[0] > 0:
            bend, size = maps.bend(read), maps.ffn_scale(op) * maps.matrix
            return size * bend.slope * back[0], size * bend.two(maps.share(read), slope=True) * back[1]
        if op == "dot":
            w = maps.self_weight(read)
            mean = maps.attend_back(back, 0.0)
            return w * w * back[0] + (1 - w * w) * mean[0], w * w * back[1] + (1 - w * w) * mean[1]
        if op == "attn":
            focus = maps.focus(read)
            same, two = maps.attend_back(back, focus)
            same += 2 * maps.matrix**2 * self._scores_back(back, read)  # through the queries, and through the keys
            return maps.size(op) * same, maps.size(op) * two
        return maps.size(op) * back[0], maps.size(op) * back[1]

    def _scores_back(self, back: Pair, read: Pair) -> float:
        """What comes back through the scores of attention, but for the gains of its four matrices."""
        apart = max(read[0] - read[1], 0.0)
        return self.maps.spread(self.maps.focus(read))[1] * back[0] * apart**2

    def _on_weights(self, step: Call, back: Pair, read: Pair, written: Pair) -> float:
        """Mean square of the gradient with respect to the sub-layer's matrices, times width squared and the tokens.

        A matrix's gradient is a sum over positions of (gradient of what it writes) times (what it reads).
        """
        maps, op, others = self.maps, step.site.op, self.maps.fresh.tokens - 1
        if op == "dot" or maps.size(op) <= 0:
            return 0.0
        if op in ("ffn", "moe") and read[0] > 0:
            bend, scale, ratio = maps.bend(read), maps.ffn_scale(op), maps.fresh.ratio
            last = (back[0] * written[0] + others * back[1] * written[1]) * ratio / scale
            slope_two = bend.two(maps.share(read), slope=True)
            first = (bend.slope * back[0] * read[0] + others * slope_two * back[1] * read[1]) * scale
            return max(last, 0.0) + max(first, 0.0)
        inner = math.sqrt(maps.size(op))
        scores = 2 * maps.size(op) * maps.matrix * self._scores_back(back, read) * read[0] if op == "attn" else 0.0
        return scores + 2 * max(back[0] * written[0] + others * back[1] * written[1], 0.0) / inner
