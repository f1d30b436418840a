"""The logit lens (nostalgebraist 2020): the loss if the model ended after each layer.

The stream after layer L takes the place of the stream after the last layer, and the model's own final norm, head and
loss do the rest; so the last number is the model's loss.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.audit.located import LocatedStack
from sublayer.probe.audited import Reader, ran, untouched
from sublayer.probe.errors import ProbeError
from sublayer.probe.feeding import Fed
from sublayer.probe.listen import Listener
from sublayer.probe.losses import Loss, loss_of
from sublayer.probe.measuring import Record
from sublayer.probe.places import Plan, Sight, sight_of

CLOSE = 1e-3  # relative: the last number against the loss of the untouched model


def lens(reader: Reader, batches: Sequence[Fed], loss: Loss, causal: bool | None) -> Record:
    """Loss by layer of the stack that makes the output.

    Returns:
        ``{"stack", "losses", "loss", "targets", "what"}``: ``losses`` has one number more than there are layers, the
        first for the stream before layer 0; ``loss`` is the model's own, which the last of them equals.

    Raises:
        ProbeError: several streams pass from layer to layer, the stream cannot be replaced, or there is no loss.
    """
    stack = reader.found.stacks[-1]
    sights = _sights(reader, stack)
    last = sights[-1]
    skipped = _skippable(reader, stack, last)
    depth = len(sights) - 1
    totals = torch.zeros(depth + 1, dtype=torch.float64)
    own, targets, what = 0.0, 0, ""
    seen: dict[int, Tensor] = {}
    swaps = 0

    with untouched(reader.module), torch.no_grad():
        for fed in batches:
            seen.clear()
            of = {sight.key: k for k, sight in enumerate(sights)}

            def keep(sight: Sight, tensor: Tensor, of: dict[Any, int] = of) -> None:
                seen.setdefault(of[sight.key], tensor.detach().clone())

            listener = Listener(Plan(sights=list({s.key: s for s in sights}.values())), keep)
            with _outputs(skipped) as outputs, listener.following(reader.module):
                result = ran(reader.module, fed)
            plain, count, what = loss_of(result, fed, loss, causal)
            missing = [k for k, s in enumerate(sights) if of[s.key] not in seen]
            if missing:
                raise ProbeError(f"a logit lens needs the stream after every layer; after layer {missing[0] - 1} it "
                                 "was "
                                 "not found in the run")  # fmt: skip
            own += count * float(plain)
            targets += count
            for k in range(depth + 1):
                other = seen[of[sights[k].key]]

                def swap(sight: Sight, tensor: Tensor, other: Tensor = other) -> Tensor | None:
                    nonlocal swaps
                    if other.numel() != tensor.numel():
                        return None
                    swaps += 1
                    return other.reshape(tensor.shape).to(tensor.dtype)

                listener = Listener(Plan(sights=[last]), lambda sight, tensor: None, swap=swap)
                with _replayed(skipped, outputs), listener.following(reader.module):
                    result = ran(reader.module, fed)
                totals[k] += count * float(loss_of(result, fed, loss, causal)[0])
    losses = (totals / max(1, targets)).tolist()
    own /= max(1, targets)
    if swaps < len(batches) * (depth + 1) or abs(losses[-1] - own) > CLOSE * max(1.0, abs(own)):
        raise ProbeError("a logit lens replaces the stream after the last layer: here the loss did not stay the same "
                         "when it was replaced by itself")  # fmt: skip
    if depth and len(set(losses)) == 1:
        raise ProbeError("a logit lens replaces the stream after the last layer: here that does not change the loss")
    return {"stack": stack.name, "losses": losses, "loss": own, "targets": targets, "what": what}


def _sights(reader: Reader, stack: LocatedStack) -> list[Sight]:
    """Where the stream after each layer is made, the one before layer 0 first."""
    if stack.unknown or not stack.streams:
        raise ProbeError(f"a logit lens needs layers: {stack.unknown or 'none were found'}")
    names = sorted({name for boundary in stack.streams for name in boundary})
    if names != ["x"]:
        raise ProbeError(f"a logit lens puts one stream in the place of another: here {len(names)} "
                         f"({', '.join(names)}) pass from layer to layer")  # fmt: skip
    place = len(reader.found.stacks) - 1
    found = []
    for k, boundary in enumerate(stack.streams):
        sight = sight_of(reader.found, place, boundary["x"], made=k == len(stack.streams) - 1)
        if sight is None:
            raise ProbeError(f"a logit lens needs the stream after every layer; {_after(k)} the model never has it as "
                             "one value that could be replaced")  # fmt: skip
        found.append(sight)
    return found


def _after(boundary: int) -> str:
    return f"after layer {boundary - 1}" if boundary else "before layer 0"


def _skippable(reader: Reader, stack: LocatedStack, last: Sight) -> list[nn.Module]:
    """Modules of the layers before the last, where each layer is one call of its own module: they need not be computed
    again."""
    if last.call[1] != 0:
        return []
    modules = dict(reader.module.named_modules())
    calls = [frame.path for frame in reader.found.tape.frames[1:]]
    paths = [layer.module for layer in stack.stack.layers]
    whole = all(p and p in modules and calls.count(p) == 1 for p in paths) and len(set(paths)) == len(paths)
    inside = whole and (last.call[0] == paths[-1] or last.call[0].startswith(f"{paths[-1]}."))
    return [modules[p] for p in paths[:-1]] if inside else []


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """What modules return while the context lasts."""
    found: list[Any] = [None] * len(modules)

    def note(place: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[place] = output

        return hook

    handles = [m.register_forward_hook(note(k)) for k, m in enumerate(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replayed(modules: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Modules return what they did before, and compute nothing."""
    before = [m.__dict__.get("forward") for m in modules]
    try:
        for module, output in zip(modules, outputs, strict=True):
            module.__dict__["forward"] = lambda *args, _output=output, **kwargs: _output
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward
