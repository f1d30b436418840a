"""Memory of a training step: the model's program replayed on a tape, forwards, through the loss, and backwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sublayer.cost.operators import Attention, Device, Operators
from sublayer.cost.tape import Tape, Value
from sublayer.notation.parallel import PICK, TOGETHER, Group, parallel
from sublayer.notation.program import Add, Section
from sublayer.sizes import Sizes

Head = Literal["lm", "none"] | int
Sections = Sequence[tuple[str, Section]]

CONCATENATED = 1024  # tokens from which parallel branches join the weights of their output products
JOINED = {"cpu": 256}  # tokens from which they share an input product


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step.

    Attributes:
        weights, gradients, optimizer: of all parameters.
        activations: kept between the passes for the backward pass, logits left out.
        logits: what the loss holds when it holds most: logits, their logarithms of probabilities, their gradients.
        total: the most that lives at one moment. Gradients come as activations go, so it is less than the sum.
        moment: when that is.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    total: int
    moment: str


@dataclass(frozen=True)
class Setting:
    """How a step is run; see `sublayer.cost.cost`."""

    batch: int
    seq: int
    width: int
    attention: Attention
    device: Device
    checkpointing: bool
    accumulation: int
    packed: bool


def replay(sections: Sections, shape: Sizes, head: Head, parameters: int, how: Setting) -> Memory:
    """Run the step on a tape.

    Args:
        sections: the embed section, one for each layer, and the final one, with the places that own them.
        shape: sizes.
        head: as in `sublayer.cost.cost`.
        parameters: how many numbers the model has.
        how: batch, precision, kernels.
    """
    tape = Tape(accumulating=how.accumulation > 1)
    operators = Operators(tape, shape, how.batch, how.seq, how.width, how.attention, how.device, how.packed)
    weights, optimizer = 4 * parameters, 8 * parameters
    model = _Model(tape, operators, shape, how)
    hidden = model.run(sections)
    tape.place = "the loss"
    loss = model.loss(hidden, head)
    tape.drop(hidden)
    operators.leave_autocast()
    logarithms = 4 * how.batch * how.seq * shape.vocab_size if head == "lm" else 0
    kept = tape.now - loss.piece.size - logarithms
    tape.backward(loss)
    standing = weights + optimizer + (weights if how.accumulation > 1 else 0)
    total, moment = standing + tape.peak, tape.moment
    if weights + optimizer + 4 * parameters >= total:
        total, moment = weights + optimizer + 4 * parameters, "the optimiser"
    return Memory(weights, 4 * parameters, optimizer, round(kept), model.logits_bytes(head), round(total), moment)


class _Model:
    """The model's forward pass on a tape, in the order of `sublayer.model.modeling`."""

    def __init__(self, tape: Tape, operators: Operators, shape: Sizes, how: Setting) -> None:
        self.tape, self.operators, self.shape, self.how = tape, operators, shape, how
        self.tokens = how.batch * how.seq

    def run(self, sections: Sections) -> Value:
        """From the tables to the hidden states ``[T, d]``."""
        tape = self.tape
        tape.place = "the embedding"
        e = self._embedding()
        mask = self.tokens * self.how.seq * (1 if self.how.attention == "sdpa" else 4)
        held = tape.allocate(mask if self.how.packed else 0)
        (_, first), *rest = sections
        streams = self._section("embed_section", first, {"e": e})
        streams = self._dropped(streams)
        for i, (place, section) in enumerate(rest):
            last = i == len(rest) - 1
            tape.place = "the final section" if last else f"layer {i + 1}"
            owner = place if last else f"{place}.{i}"
            read = {name: e if name == "e" else streams[name] for name in section.inputs}
            run = self._checkpointed if self.how.checkpointing and not last else self._section
            written = run(owner, section, read)
            tape.drop(*(streams[name] for name in written if name in streams))
            streams |= written
        hidden = streams.pop("x")
        tape.drop(*streams.values(), e)
        tape.free(held)
        return hidden

    def _dropped(self, streams: dict[str, Value]) -> dict[str, Value]:
        """Dropout of what the embed section wrote, once for each distinct value."""
        shape, found = self.shape, dict[int, Value]()
        own = shape.embedding_dropout_prob
        probability = shape.hidden_dropout_prob if own is None else own
        for value in streams.values():
            if id(value) in found:
                self.tape.drop(value)
                self.tape.hold(found[id(value)].piece)
            else:
                found[id(value)] = self.operators.dropout(value, self.tokens * shape.d, probability)
        return {name: found[id(value)] for name, value in streams.items()}

    def _embedding(self) -> Value:
        shape, tape = self.shape, self.tape
        tables = {name: 4 * count for name, count in shape.embedding_tables.items() if count}
        beside = 4 * self.tokens * shape.beside
        tokens = 4 * self.tokens * shape.width
        total = tape.run([], tokens, 4, parameters=[("embed_tokens", tables["embed_tokens"])])
        projected = shape.embed_projected
        if projected and shape.embedding_projection == "tokens":
            total = self._projected(total)
        for name, rows in (("embed_types", self.tokens), ("embed_positions", self.how.seq)):
            if name in tables:
                looked = tape.run([], 4 * rows * shape.beside, 4, parameters=[(name, tables[name])])
                summed = tape.run([(total, None), (looked, 4 * rows * shape.beside)], beside, 4)
                tape.drop(looked, total)
                total = summed
        if shape.position_embedding == "sinusoidal":
            total = self._instead(total, tape.run([(total, None)], beside, 4))
        if shape.embedding_norm:
            total = self._instead(total, self.operators.norm(total, "embed_norm", shape.norm, shape.beside))
        if projected and shape.embedding_projection != "tokens":
            total = self._projected(total)
        return total

    def _projected(self, value: Value) -> Value:
        shape = self.shape
        bias = shape.embedding_projection_bias
        return self._instead(value, self.operators.linear(value, "embed_projection", shape.width, shape.d, bias))

    def _instead(self, old: Value, new: Value) -> Value:
        self.tape.drop(old)
        return new

    def _checkpointed(self, place: str, section: Section, given: dict[str, Value]) -> dict[str, Value]:
        names = list(given)

        def body(values: list[Value]) -> list[Value]:
            made = list(self._section(place, section, dict(zip(names, values, strict=True))).values())
            if self.operators.forward_is_over:  # run again, in an autocast of its own
                self.operators.leave_autocast()
            return made

        outputs = self.tape.checkpoint(list(given.values()), body)
        return dict(zip(section.streams, outputs, strict=True))

    def _section(self, place: str, section: Section, given: dict[str, Value]) -> dict[str, Value]:
        """One section; the program keeps the streams that it returns, and lets go of what is not read again."""
        groups = parallel(section).groups if self.shape.fuse_parallel else ()
        program = parallel(section).section if groups else section
        named = {group.name: group for group in groups}
        values = dict(given)
        several: dict[str, list[Value]] = {}
        left = {value: len(users) for value, users in program.users.items()}
        outputs = dict(program.outputs)
        for step in program.steps:
            if isinstance(step, Add):
                values[step.value] = self._sum([(values[term], scalar.is_one) for scalar, term in step.terms])
            elif step.site.op == PICK:
                values[step.value] = several[step.args[0]][int(step.site.name)]
            elif step.site.op == TOGETHER:
                made = self._together(place, named[step.site.name], [values[arg] for arg in step.args])
                if len(made) == 1:
                    values[step.value] = made[0]
                else:
                    several[step.value] = made
            else:
                values[step.value] = self.operators.call(step, place, values[step.args[0]])
            for arg in dict.fromkeys(step.args):
                left[arg] -= 1
                if left[arg] == 0 and arg not in given and arg not in outputs.values() and arg not in several:
                    self.tape.drop(values[arg])
        for i, value in enumerate(outputs.values()):
            if value in given or value in list(outputs.values())[:i]:
                self.tape.hold(values[value].piece)
        return {stream: values[value] for stream, value in outputs.items()}

    def _sum(self, terms: list[tuple[Value, bool]]) -> Value:
        tape, numbers = self.tape, self.tokens * self.shape.d
        total: Value | None = None
        for value, plain in terms:
            term = value
            if plain:
                tape.hold(value.piece)
            else:
                term = tape.run([(value, numbers * value.width)], numbers * value.width, value.width)
            if total is None:
                total = term
                continue
            width = max(total.width, term.width)
            read = [(one, None if one.width == width else float(numbers * one.width)) for one in (total, term)]
            summed = tape.run(read, numbers * width, width)
            tape.drop(total, term)
            total = summed
        assert total is not None
        return total

    # -- parallel branches --------------------------------------------------------------------------------------

    def _together(self, place: str, group: Group, given: list[Value]) -> list[Value]:
        """The calls of a group, as `sublayer.model.fused` runs them."""
        ops, tape, shape = self.operators, self.tape, self.shape
        joins = self.tokens >= JOINED.get(self.how.device, 0)
        names = [f"{place}.{call.site.name}" for call in group.calls]
        products: list[list[Value]] = [[] for _ in group.calls]
        for i, value in enumerate(given):
            readers = [k for k, read in enumerate(group.reads) if read == i]
            parts = [(k, part) for k in readers for part in ops.inputs_of(group.calls[k], names[k])]
            if len(readers) > 1 and joins:
                width, bias = sum(part[1] for _, part in parts), any(part[2] for _, part in parts)
                whole = ops.linear(value, f"{names[readers[0]]}.joined", shape.d, width, bias)
                for (k, _), window in zip(parts, tape.split(whole, len(parts)), strict=True):
                    products[k].append(window)
                tape.drop(whole)
            else:
                for k, (name, width, bias) in parts:
                    products[k].append(ops.linear(value, name, shape.d, width, bias))
        inner = [ops.inside(*each) for each in zip(group.calls, names, products, strict=True)]
        made = [self._output(group, names, inner, [term.call for term in terms]) for terms in group.results]
        tape.drop(*inner, *(value for each in products for value in each))
        return made

    def _output(self, group: Group, names: list[str], inner: list[Value], calls: list[int]) -> Value:
        """The sum of some branches' output products."""
        ops, tape, tokens, d = self.operators, self.tape, self.tokens, self.shape.d
        joined = self.how.width == 2 or tokens >= CONCATENATED
        widths = [ops.last_of(group.calls[k])[0] for k in calls]
        biases = [ops.last_of(group.calls[k])[1] for k in calls]
        if len(calls) == 1 or self.shape.hidden_dropout_prob:
            outputs = [ops.output(group.calls[k], names[k], inner[k]) for k in calls]
            if len(calls) == 1:
                return outputs[0]
            summed = self._sum([(output, True) for output in outputs])
            tape.drop(*outputs)
            return summed
        width = self.how.width
        if joined:
            side = tape.run([(inner[k], None) for k in calls], tokens * sum(widths) * width, width)
            # the weights side by side are a copy too; its gradient's windows are the parameters'
            copy = tape.allocate(4 * d * sum(widths))
            name = f"{names[calls[0]]}.out"
            read = tape.run(
                [(side, tokens * sum(widths) * width)],
                tokens * d * width,
                width,
                saved=[side, copy, *ops.weight(name, d * sum(widths))],
                parameters=[(name, 4 * d * (sum(widths) + sum(biases)))],
                scratch=0 if width == 4 else 2 * d * sum(widths),
            )
            tape.free(copy)
            tape.drop(side)
            return read
        total: Value | None = None
        for k, inner_width, bias in zip(calls, widths, biases, strict=True):
            reads = [(inner[k], float(tokens * inner_width * 4))]
            parameters = [(f"{names[k]}.out", 4.0 * d * (inner_width + bias))]
            if total is None:
                total = tape.run(reads, tokens * d * 4, 4, saved=[inner[k]], parameters=parameters)
            else:  # added where the sum lies
                summed = tape.run([(total, None), *reads], 0, 4, saved=[inner[k]], parameters=parameters)
                tape.hold(total.piece)
                summed.piece = total.piece
                tape.drop(total)
                total = summed
        assert total is not None
        return total

    # -- the loss -----------------------------------------------------------------------------------------------

    def loss(self, hidden: Value, head: Head) -> Value:
        """The head and its loss, from the hidden states."""
        ops, tape, shape, tokens = self.operators, self.tape, self.shape, self.tokens
        if head == "none":
            return tape.run([(hidden, None)], 4, 4)
        if isinstance(head, int):
            pooled = tape.run([(hidden, tokens * shape.d * 4)], self.how.batch * shape.d * 4, 4)
            logits = ops.linear(pooled, "score", shape.d, head, shape.classifier_bias, rows=self.how.batch)
            tape.drop(pooled)
            return tape.run([(logits, None)], 4, 4, saved=[logits])
        read, width = hidden, shape.d
        tape.hold(read.piece)
        if shape.lm_head_dense:
            width = shape.width
            read = self._instead(read, ops.linear(read, "transform", shape.d, width, shape.lm_head_dense_bias))
        if shape.lm_head_act is not None:
            read = self._instead(read, ops.elementwise(read, tokens * width, shape.lm_head_act))
        if shape.lm_head_norm:
            read = self._instead(read, ops.norm(read, "transform_norm", shape.norm, width))
        table = "embed_tokens" if shape.tie_word_embeddings else "lm_head"
        logits = self._logits(read, table, width)
        tape.drop(read)
        numbers = tokens * shape.vocab_size
        if logits.width != 4:
            logits = self._instead(logits, tape.run([(logits, numbers * logits.width)], numbers * 4, 4))
        logarithms = tape.run([(logits, numbers * 4)], numbers * 4, 4, saves_output=True)
        loss = tape.run([(logarithms, numbers * 4)], 4, 4, saved=[logarithms])
        tape.drop(logits, logarithms)
        return loss

    def _logits(self, read: Value, table: str, width: int) -> Value:
        """The output layer, whose weight may be the table of tokens."""
        ops, shape, vocabulary = self.operators, self.shape, self.shape.vocab_size
        cast = ops.cast(read, width, self.how.width)
        numbers = width * vocabulary
        parameters = [(table, 4.0 * numbers)]
        if shape.lm_head_bias:
            parameters.append(("lm_head.bias", 4.0 * vocabulary))
        logits = self.tape.run(
            [(cast, self.tokens * width * cast.width)],
            self.tokens * vocabulary * cast.width,
            cast.width,
            saved=[cast, *ops.weight(table, numbers)],
            parameters=parameters,
            scratch=0 if cast.width == 4 else 2 * numbers,
        )
        self.tape.drop(cast)
        return logits

    def logits_bytes(self, head: Head) -> int:
        """What the loss of a language model holds when it holds most."""
        if head != "lm":
            return 0
        return (12 if self.how.width == 4 else 14) * self.tokens * self.shape.vocab_size
