"""Parallel branches with one input product and one output product. `sublayer.notation.parallel` says which.

The input product. ``W_q, W_k, W_v`` and the FFN's ``W_up`` that read one value ``h`` are one matrix over it. Their
parameters keep their names and lie one after another in one piece of memory, so that ``[W_q; W_k; W_v; W_up]`` is there
without a copy, forward and backward. They are put there when a model is built, loaded, moved or copied; if somebody
has since given a parameter other memory, the products run one by one until then. On a CPU, one product over few tokens
is slower than several (by 20 to 45% for 8 tokens at d 512 to 1024), so that they are one from ``JOINED`` tokens on,
where it is as fast.

The output product. ``W_o c + W_2 a + b_o + b_2 = [W_o | W_2] [c; a] + b``, where ``c`` is the attention's context and
``a`` the FFN's hidden activations. A factor of the equation multiplies its block. From ``CONCATENATED`` tokens on, and
under autocast, the blocks are joined and multiplied once: there the copy of the weights is a few per cent of a training
step's product. Below, where it is up to twice the product, the same multiplications are done block by block, each
added onto the last where it lies, without sums of their own.

`torch.compile` and tracing see the joined matrices while gradients are taken, and otherwise the branches one by one:
for a single token the copy would cost more than the product.

What must stay exact runs unfused, each of the two products by itself: the output with dropout in training, which is
drawn on each branch's output; a projection that is anything but a plain ``nn.Linear`` (LoRA, quantised, split over
devices); and all of it where a hook waits on a module that would not be called. On the meta device there is no memory
to lie together in. ``benchmarks/fused.py`` measures what each form costs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sublayer.model.branch import Branch
from sublayer.model.context import Context
from sublayer.model.fused_memory import SideBySide, place, still_placed
from sublayer.notation.code import CONTEXTUAL
from sublayer.notation.parallel import Group

JOINED = {"cpu": 256}  # device -> tokens from which one input product is as fast as several; elsewhere always
CONCATENATED = 1024  # tokens from which copying the output weights side by side costs little beside the product


class Together:
    """The calls of one group: ``self.attn_ffn(h, context)`` in a block's code.

    Args:
        owner: the module that has the group's sites.
        group: which calls, what they read, and which of their outputs are summed.
    """

    def __init__(self, owner: nn.Module, group: Group) -> None:
        self.owner = owner
        self.group = group
        reads = group.reads
        # Which of the values are read more than once -> the calls that read it.
        self.shared = {i: [k for k, r in enumerate(reads) if r == i] for i, n in Counter(reads).items() if n > 1}
        self.wholes: dict[int, tuple[Tensor, Tensor | None]] = {}

    def __repr__(self) -> str:
        return f"{self.group.name}: {self.group.products}"

    def place(self) -> None:
        """Put the weights of each input product, and the biases where all have one, in one piece of memory."""
        placed, self.wholes = self.wholes, {}
        sites = self._sites()
        for i, readers in self.shared.items():
            if not all(isinstance(sites[k], Branch) for k in readers):
                continue
            linears = _inputs(sites, readers)
            if not all(is_plain_linear(linear) for linear in linears):
                continue
            if i in placed and still_placed(placed[i][0], [linear.weight for linear in linears]):
                self.wholes[i] = placed[i]
                continue
            weight = place([linear.weight for linear in linears])
            biases = [linear.bias for linear in linears if linear.bias is not None]
            if weight is not None:
                self.wholes[i] = weight, place(biases) if len(biases) == len(linears) else None

    def __call__(self, *given: Any) -> Any:
        """Each value that the group reads ``[batch, seq, d]``, the context, and the factors where they are not all 1.

        Returns:
            one result ``[batch, seq, d]``, or a tuple of the group's results.
        """
        group, count = self.group, len(self.group.args)
        values, context = given[:count], given[count]
        factors: Iterator[Any] = iter(given[count + 1] if group.factors else [])
        sites = self._sites()
        if all(isinstance(site, Branch) and is_plain(site) for site in sites) and not _all_modules_hooked():
            results = self._fused(sites, values, context, factors)
        else:
            results = self._apart(sites, values, context, factors)
        return results[0] if len(results) == 1 else tuple(results)

    def _sites(self) -> list[Any]:
        return [getattr(self.owner, call.site.name) for call in self.group.calls]

    def _numbers(self, factors: Iterator[Any]) -> Iterator[tuple[list[int], list[Any]]]:
        """For each result, its calls and their factors."""
        for terms in self.group.results:
            yield [term.call for term in terms], [next(factors) if self.group.factors else 1 for _ in terms]

    def _apart(
        self, sites: list[nn.Module], values: Sequence[Tensor], context: Context, factors: Iterator[Any]
    ) -> list[Tensor]:
        """Every module called as itself, in the order of the equation."""
        outputs = []
        for site, call, i in zip(sites, self.group.calls, self.group.reads, strict=True):
            outputs.append(site(values[i], context) if call.site.op in CONTEXTUAL else site(values[i]))
        return [_sum([outputs[k] for k in calls], numbers) for calls, numbers in self._numbers(factors)]

    def _fused(
        self, sites: list[Branch], values: Sequence[Tensor], context: Context, factors: Iterator[Any]
    ) -> list[Tensor]:
        projected: dict[int, tuple[Tensor, ...]] = {}
        for i, readers in self.shared.items():
            joined = self._joined(i, _inputs(sites, readers), values[i])
            if joined is not None:
                # [batch, seq, sum of widths] -> one [batch, seq, width] for each linear
                widths = [linear.out_features for linear in _inputs(sites, readers)]
                products = iter(F.linear(values[i], *joined).split(widths, dim=-1))
                for k in readers:
                    projected[k] = tuple(next(products) for _ in sites[k].inputs)
        inner = []
        for k, (site, i) in enumerate(zip(sites, self.group.reads, strict=True)):
            inner.append(site.inside(projected[k] if k in projected else site.project(values[i]), context))
        return [
            _output([sites[k] for k in calls], [inner[k] for k in calls], numbers)
            for calls, numbers in self._numbers(factors)
        ]

    def _joined(self, i: int, linears: list[Any], value: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Weight ``[sum of widths, d]`` and bias of the input product of value ``i``; None if it has to run apart."""
        if not all(is_plain_linear(linear) for linear in linears):
            return None
        weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
        if _is_traced():
            return (torch.cat(weights), _joined_bias(linears)) if torch.is_grad_enabled() else None
        weight, bias = self.wholes.get(i, (None, None))
        if weight is None or not still_placed(weight, weights):
            self.wholes.pop(i, None)  # or memory that no parameter uses would be kept
            return None
        if value.shape[:-1].numel() < JOINED.get(value.device.type, 0):
            return None
        if bias is not None and all(b is not None for b in biases) and still_placed(bias, biases):
            return _with_gradient(weight, weights), _with_gradient(bias, biases)
        return _with_gradient(weight, weights), _joined_bias(linears)


def _inputs(sites: Sequence[Branch], readers: list[int]) -> list[Any]:
    return [linear for k in readers for linear in sites[k].inputs]


def _with_gradient(whole: Tensor, parts: list[Tensor]) -> Tensor:
    if not torch.is_grad_enabled():
        return whole
    joined: Tensor = SideBySide.apply(whole, *parts)
    return joined


def _joined_bias(linears: list[nn.Linear]) -> Tensor | None:
    """The biases one after another, zeros for a linear map without one."""
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat([li.weight.new_zeros(li.out_features) if li.bias is None else li.bias for li in linears])


def _output(branches: list[Branch], inner: list[Tensor], numbers: list[Any]) -> Tensor:
    """The sum of the branches' outputs times their factors, from what each output product reads, as one product."""
    lasts: list[Any] = [branch.last for branch in branches]
    dropped = any((b.dropout.training and b.dropout.p > 0) or not is_plain(b.dropout) for b in branches)
    alone = len(branches) == 1 or (_is_traced() and not torch.is_grad_enabled())
    if alone or dropped or not all(is_plain_linear(last) for last in lasts):
        return _sum([branch.output(each) for branch, each in zip(branches, inner, strict=True)], numbers)
    biased = [(last.bias, n) for last, n in zip(lasts, numbers, strict=True) if last.bias is not None]
    bias = _sum(*zip(*biased, strict=True)) if biased else None
    tokens = inner[0].shape[:-1]
    if _is_traced() or _is_autocast(inner[0].device.type) or tokens.numel() >= CONCATENATED:
        blocks = [last.weight if n == 1 else n * last.weight for last, n in zip(lasts, numbers, strict=True)]
        return F.linear(torch.cat(inner, dim=-1), torch.cat(blocks, dim=1), bias)
    total = inner[0].new_zeros(()) if bias is None else bias
    beta = 0 if bias is None else 1
    for i, (each, last, n) in enumerate(zip(inner, lasts, numbers, strict=True)):
        flat, block = each.flatten(0, -2), last.weight.t()  # [tokens, inner], [inner, d]
        total = total.addmm_(flat, block, alpha=n) if i else torch.addmm(total, flat, block, beta=beta, alpha=n)
    return total.view(*tokens, -1)


def _sum(outputs: Sequence[Tensor], numbers: Sequence[Any]) -> Tensor:
    """Outputs times factors, added in the order of the equation."""
    terms = [output if n == 1 else n * output for output, n in zip(outputs, numbers, strict=True)]
    return sum(terms[1:], terms[0])


def is_plain(module: nn.Module) -> bool:
    """Whether calling the module runs its class's forward and nothing else: no hooks, nothing put in its place."""
    waiting = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
    )
    return not waiting and "forward" not in module.__dict__


def is_plain_linear(module: nn.Module) -> bool:
    """Whether the module is ``nn.Linear`` itself with parameters of its own that are ordinary tensors."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter or not is_plain(module):
        return False
    return module.bias is None or type(module.bias) is nn.Parameter


def _all_modules_hooked() -> bool:
    """Whether a hook waits on every module there is, as tracers and profilers set them."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def _is_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _is_traced() -> bool:
    """Whether a compiler or tracer looks on: it would take addresses in memory for constants."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, if not in its __all__
