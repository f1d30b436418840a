"""A training step replayed without numbers: what is allocated and freed, in order, and the most that lives at once.

Values have sizes in bytes and nothing else. Whoever needs a piece of memory holds it; the last to let go frees it, as
in torch. A function that is run on values may save some of them for its gradient, and the backward pass visits the
functions in the reverse of their order, as autograd does: each makes the gradients of what it read and of its
parameters, then lets go of what it saved and of the gradient that it was given.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

#: A parameter's name and the bytes of its gradient.
Parameter = tuple[str, float]


@dataclass(eq=False)
class Piece:
    """A piece of memory: its size in bytes, and how many hold it."""

    size: float
    holders: int = 1


@dataclass(eq=False)
class Value:
    """A tensor of the forward pass: its memory, bytes a number, whether it needs a gradient, and that gradient."""

    piece: Piece
    width: int
    needs: bool
    gradient: Piece | None = None


#: What a function reads, with the bytes of its gradient; None where that is the gradient the function was given.
Input = tuple[Value, float | None]


@dataclass(eq=False)
class Step:
    """One differentiable function that was run.

    Attributes:
        outputs: what it made.
        inputs: what it read.
        saved: memory held until its backward pass is over.
        parameters: of its own.
        scratch: bytes held only while its backward pass runs.
        place: where in the model.
        body: for a function that was not recorded: what to run again, on values like ``inputs``.
    """

    outputs: Sequence[Value]
    inputs: Sequence[Input]
    saved: list[Piece]
    parameters: Sequence[Parameter]
    scratch: float
    place: str
    body: Callable[[list[Value]], list[Value]] | None = None


@dataclass
class Tape:
    """The memory of one training step, in bytes.

    Attributes:
        accumulating: gradients of an earlier forward pass are there, and new ones are added to them in place. Those
            that are there are not counted here.
        now: what lives.
        peak, moment: the most that lived at once, and where in the step that was.
        place: where the step is now.
    """

    accumulating: bool = False
    now: float = 0
    peak: float = 0
    moment: str = ""
    place: str = ""
    _steps: list[Step] = field(default_factory=list)
    _recording: bool = True
    _uses: Counter[str] = field(default_factory=Counter)  # how often each parameter's gradient is still to come
    _gradients: dict[str, Piece] = field(default_factory=dict)

    # -- memory ---------------------------------------------------------------------------------------------------

    def allocate(self, size: float) -> Piece:
        """A new piece with one holder."""
        self.now += size
        if self.now > self.peak:
            self.peak, self.moment = self.now, self.place
        return Piece(size)

    def hold(self, piece: Piece) -> Piece:
        """One holder more."""
        piece.holders += 1
        return piece

    def free(self, *pieces: Piece) -> None:
        """One holder less of each."""
        for piece in pieces:
            piece.holders -= 1
            if piece.holders == 0:
                self.now -= piece.size

    # -- the forward pass -----------------------------------------------------------------------------------------

    def run(
        self,
        inputs: Sequence[Input],
        size: float,
        width: int,
        *,
        saved: Iterable[Value | Piece] = (),
        saves_output: bool = False,
        kept: float = 0,
        parameters: Sequence[Parameter] = (),
        before: float = 0,
        scratch: float = 0,
    ) -> Value:
        """Run a function; the program holds what it returns until :meth:`drop`.

        Args:
            inputs: what it reads.
            size: bytes of the output.
            width: bytes a number of the output.
            saved: what it keeps for its gradient, and with ``saves_output`` the output too.
            kept: bytes that it keeps beside these, such as the statistics of a norm.
            parameters: of its own.
            before: bytes that the forward pass needs for a moment, beside the output.
            scratch: bytes that the backward pass needs for a moment, beside the gradients.
        """
        waiting = self.allocate(before)
        output = Value(self.allocate(size), width, bool(parameters) or any(value.needs for value, _ in inputs))
        if output.needs and self._recording:
            pieces = [self.hold(one.piece if isinstance(one, Value) else one) for one in saved]
            if saves_output:
                pieces.append(self.hold(output.piece))
            pieces.append(self.allocate(kept))
            self._record(Step([output], inputs, pieces, parameters, scratch, self.place))
        self.free(waiting)
        return output

    def split(self, whole: Value, count: int) -> list[Value]:
        """Windows on one value, each held by the program; their gradients are put together in new memory."""
        parts = [Value(self.hold(whole.piece), whole.width, whole.needs) for _ in range(count)]
        if whole.needs and self._recording:
            self._record(Step(parts, [(whole, whole.piece.size)], [], (), 0, self.place))
        return parts

    def checkpoint(self, inputs: list[Value], body: Callable[[list[Value]], list[Value]]) -> list[Value]:
        """Run ``body`` without recording it; in the backward pass it is run again, recorded, and taken backwards."""
        before, self._recording = self._recording, False
        outputs = body(inputs)
        self._recording = before
        needed: list[Input] = [(value, None) for value in inputs]
        self._record(Step(outputs, needed, [self.hold(v.piece) for v in inputs], (), 0, self.place, body))
        return outputs

    def drop(self, *values: Value) -> None:
        """The program lets go of values; what is saved stays."""
        self.free(*(value.piece for value in values))

    def _record(self, step: Step) -> None:
        self._steps.append(step)
        self._uses.update(name for name, _ in step.parameters)

    # -- the backward pass ----------------------------------------------------------------------------------------

    def backward(self, loss: Value) -> None:
        """Take the gradients of everything that ``loss`` was made from."""
        loss.gradient = self.allocate(loss.width)
        self._unwind()

    def _unwind(self) -> None:
        while self._steps:
            step = self._steps.pop()
            self.place = f"{step.place}, backwards"
            given = [value.gradient for value in step.outputs]
            for value in step.outputs:
                value.gradient = None
            if not any(given):  # nothing that reaches the loss reads it
                self.free(*step.saved)
                self._uses.subtract(name for name, _ in step.parameters)
            elif step.body is None:
                self._take(step, [piece for piece in given if piece is not None])
            else:
                self._take_again(step, step.body, given)

    def _take(self, step: Step, given: list[Piece]) -> None:
        scratch = self.allocate(step.scratch)
        made = [
            (value, self.hold(given[0]) if size is None else self.allocate(size))
            for value, size in step.inputs
            if value.needs
        ]
        for name, size in step.parameters:
            self._accumulate(name, size)
        self.free(scratch, *step.saved, *given)
        for value, piece in made:
            self._arrive(value, piece)

    def _take_again(
        self, step: Step, body: Callable[[list[Value]], list[Value]], given: Sequence[Piece | None]
    ) -> None:
        """Run a checkpointed body once more, then backwards; steps before it wait meanwhile."""
        waiting, self._steps = self._steps, []
        inputs = [Value(self.hold(value.piece), value.width, value.needs) for value, _ in step.inputs]
        outputs = body(inputs)
        for value, piece in zip(outputs, given, strict=True):
            value.gradient = piece
        self.drop(*outputs)
        self._unwind()
        self.drop(*inputs)
        self.free(*step.saved)
        self._steps = waiting
        for (value, _), copy in zip(step.inputs, inputs, strict=True):
            if copy.gradient is not None:
                self._arrive(value, copy.gradient)

    def _arrive(self, value: Value, piece: Piece) -> None:
        """A gradient reaches a value: the first is taken as it is, a later one is added, in place if nobody else holds
        the sum so far."""
        before = value.gradient
        if before is None:
            value.gradient = piece
        elif before.holders == 1:
            self.free(piece)
        else:
            value.gradient = self.allocate(before.size)
            self.free(before, piece)

    def _accumulate(self, name: str, size: float) -> None:
        """The gradient of a parameter. That of a shared one is summed in new memory until its last part is there."""
        new = self.allocate(size)
        if name in self._gradients:
            both = self.allocate(size)
            self.free(self._gradients[name], new)
            new = both
        self._gradients[name] = new
        self._uses[name] -= 1
        if self.accumulating and self._uses[name] == 0:
            self.free(self._gradients.pop(name))
