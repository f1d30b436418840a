"""What the equation does not say: heads, widths, gates, norms and their places, what is computed in vain."""

from math import prod
from typing import Any

from sublayer.audit.acts import label
from sublayer.audit.branches import WIRING, Branch, BranchReader
from sublayer.audit.flow import Flow
from sublayer.audit.result import BranchFacts, NormFacts
from sublayer.audit.section import Reading
from sublayer.audit.stack import StackReading
from sublayer.audit.tape import Tape, Value

ATTENTION = ("attn", "cross", "dot")


class Facts:
    """Facts of one stack."""

    def __init__(self, stack: StackReading, length: int) -> None:
        self.stack, self.flow = stack, stack.flow
        self.reader = BranchReader(stack.flow, (), lambda _: False, length)
        shape = stack.flow.tape.inputs[stack.flow.main[0]].shape
        self.rows = max(1, shape[0] if shape else 1)
        self.tokens = self.rows * max(1, length)

    # --- sub-layers -----------------------------------------------------------------------------------------------

    def branch(self, branch: Branch, shared: bool = False) -> BranchFacts:
        """Facts of one sub-layer."""
        nodes = self.flow.nodes
        details: dict[str, Any] = {}
        if branch.op in ATTENTION:
            details = self._attention(branch)
        elif branch.op == "ffn":
            details = self._ffn(branch)
        elif branch.op == "moe":
            details = self._experts(branch) | {"shared_expert": shared}
        elif branch.op == "mixer":
            details = {"mixes": ", ".join(self.reader.mixes(branch.content))}
        names = dict.fromkeys(
            n for i in branch.content for w in nodes[i].operands for n in self.flow.parameter_names(w)
        )
        return BranchFacts(
            branch.op,
            label(self.flow, branch.content),
            details,
            tuple(names),
            self._channels(branch.source) or nodes[branch.source].width,
            self._channels(branch.output) or nodes[branch.output].width,
        )

    def _channels(self, node: int) -> int:
        """Numbers a token of a node, whatever its shape."""
        if self.flow.pictured:
            return self.flow.nodes[node].width
        shape = self.flow.nodes[node].value.shape
        return prod(shape) // self.tokens if prod(shape) % self.tokens == 0 else 0

    def _attention(self, branch: Branch) -> dict[str, Any]:
        nodes, inside = self.flow.nodes, set(branch.content)
        hub = branch.hub
        mixed = [i for i in branch.content if nodes[i].kind == "core"]
        mixed = mixed or [i for i in branch.content if nodes[i].kind == "matmul"][-1:]
        below = self._downstream(mixed[-1], inside) if mixed else set()
        projected = branch.outer >= 0 or any(nodes[i].kind in ("linear", "route", "conv") for i in below)
        details: dict[str, Any] = {"output_projection": projected}
        scores = [i for i in branch.content if nodes[i].kind == "softmax"]
        products = [i for i in branch.content if nodes[i].kind == "matmul"]
        first = next((i for i in products if not scores or i < scores[-1]), None)
        core = next((i for i in branch.content if nodes[i].kind == "core"), None)
        head = 0
        if core is not None:
            query, key = nodes[core].value.args[0], nodes[core].value.args[1]
            if isinstance(query, Value) and (len(query.shape) == 4 or self.flow.pictured):
                head = query.shape[-1]
                heads = self.flow.channels(query) // head if self.flow.pictured else query.shape[1]
                details |= {"heads": heads, "head_dim": head}
                # Keys may have been repeated before: what made them tells how many there are.
                groups = self._key_heads(nodes[core].detail.get("k", -1), inside, head) or key.shape[1]
                if heads % groups == 0:
                    details["kv_heads"] = groups
            ends = [nodes[core].detail.get("q", -1), nodes[core].detail.get("k", -1)]
        elif first is not None:
            head = nodes[first].detail.get("inner", 0)
            shape = nodes[scores[-1]].value.shape if scores else nodes[first].value.shape
            heads = prod(shape[:-1]) // self.tokens if prod(shape[:-1]) % self.tokens == 0 else 0
            if self.flow.pictured:
                heads = max(1, nodes[scores[-1] if scores else first].width)
            if heads and head:
                details |= {"heads": heads, "head_dim": head}
                groups = self._key_heads(nodes[first].detail.get("right", -1), inside, head)
                if groups and heads % groups == 0:
                    details["kv_heads"] = groups
            ends = [nodes[first].detail.get("left", -1), nodes[first].detail.get("right", -1)]
        else:
            ends = []
        details["qk_norm"] = self._query_norm(branch, [e for e in ends if e >= 0], head)
        after = [i for i in branch.content if i > hub >= 0]
        details["inner_norm"] = any(nodes[i].kind == "norm" and i in self._downstream(hub, inside) for i in after)
        details["gated"] = any(nodes[i].kind == "product" for i in [*after, hub] if i >= 0)
        return details

    def _downstream(self, start: int, inside: set[int]) -> set[int]:
        found, stack = set(), [start]
        while stack:
            for user in self.flow.users[stack.pop()]:
                if user in inside and user not in found:
                    found.add(user)
                    stack.append(user)
        return found

    def _key_heads(self, place: int, inside: set[int], head: int) -> int:
        """Heads of the keys at a node: numbers a token, before keys are repeated, over the width of a head."""
        nodes = self.flow.nodes
        while place >= 0 and nodes[place].kind == "sum" and len(nodes[place].inputs) == 1 and place in inside:
            place = nodes[place].inputs[0]
        channels = self._channels(place) if place >= 0 else 0
        return channels // head if channels and channels % head == 0 else 0

    def _query_norm(self, branch: Branch, ends: list[int], head: int) -> str:
        nodes, inside = self.flow.nodes, set(branch.content)
        seen: set[int] = set()
        stack = [(e, False) for e in ends]
        found = "none"
        while stack:
            i, projected = stack.pop()
            if i in seen or i not in inside:
                continue
            seen.add(i)
            node = nodes[i]
            if node.kind == "norm":
                unit = node.detail.get("norm") == "l2norm"
                kind = (
                    "latent" if projected else "unit" if unit else "head" if node.detail.get("over") == head else "full"
                )
                found = kind if found in ("none", "latent", "unit") else found
            stack += [(j, projected or node.kind == "linear") for j in node.inputs]
        return found

    def _ffn(self, branch: Branch) -> dict[str, Any]:
        nodes = self.flow.nodes
        details: dict[str, Any] = {}
        if branch.hub >= 0:
            width = self._channels(branch.hub) or nodes[branch.hub].width
            reads = self._channels(branch.source) or nodes[branch.source].width
            details |= {"width": width, "ratio": round(width / reads, 4) if reads else None}
            inside = set(branch.content)
            before = [i for i in branch.content if i <= branch.hub]
            linear = [i for i in before if nodes[i].kind == "linear"]
            products = [i for i in before if nodes[i].kind == "product"]
            details["gated"] = len(linear) > 1 and bool(products)
            bends = [nodes[i].value for i in before if nodes[i].kind in ("pointwise", "product")]
            details["activation"] = _activation(bends)
            details["inner_norm"] = any(nodes[i].kind == "norm" for i in inside)
        return details

    def _experts(self, branch: Branch) -> dict[str, Any]:
        nodes = self.flow.nodes
        for i in branch.content:
            value = nodes[i].value
            if value.name == "_grouped_mm":
                weight = next((a for a in value.args[1:2] if isinstance(a, Value)), None)
                if weight is not None and len(weight.shape) == 3:
                    return {"experts": weight.shape[0]}
        for i in branch.content:
            if nodes[i].kind == "softmax" or nodes[i].value.name == "topk":
                return {"experts": nodes[nodes[i].inputs[0]].width}
        return {}

    # --- norms ----------------------------------------------------------------------------------------------------

    def norms(self, reading: Reading, where: str = "") -> tuple[NormFacts, ...]:
        """Facts of the norms of a section: those on the way first, then those inside sub-layers."""
        nodes = self.flow.nodes
        found = []
        for i, _ in reading.norms:
            found.append(self._norm(i, where or self._place(i, reading)))
        for branch in reading.branches:
            latest: dict[tuple[int, ...], int] = {}
            for i in branch.content:
                if nodes[i].kind == "norm" and not (branch.op == "moe" and not nodes[i].operands):
                    # (A mixture's unweighted norm is that of its router's choice.)
                    latest[nodes[i].inputs] = i  # with its gain and offset
            for i in latest.values():
                place = f"inside {branch.op}"
                if branch.op in ATTENTION and branch.hub >= 0 and i < branch.hub:
                    place = "latent" if any(nodes[u].kind == "linear" for u in self.flow.users[i]) else "query or key"
                found.append(self._norm(i, place))
        return tuple(found)

    def _norm(self, index: int, where: str) -> NormFacts:
        node = self.flow.nodes[index]
        names = tuple(dict.fromkeys(n for w in node.operands for n in self.flow.parameter_names(w)))
        if node.kind != "norm":
            return NormFacts("dyt", None, "gain+offset", where, label(self.flow, [index]), names)
        parts = [p for p in ("gain", "offset") if node.detail.get(p)]
        return NormFacts(
            node.detail["norm"],
            node.detail.get("eps"),
            "+".join(parts) or "none",
            where,
            label(self.flow, [index]),
            names,
        )

    def _place(self, norm: int, reading: Reading) -> str:
        readers = [b.op for b in reading.branches if b.source == norm]
        inside = {i for b in reading.branches for i in b.content}
        others = [u for u in self.flow.users[norm] if u not in inside]
        if readers and not any(self.flow.nodes[u].kind in WIRING for u in others):
            return "input of " + " and ".join(dict.fromkeys(readers))
        place = self.flow.nodes[norm].inputs[0]
        while self.flow.nodes[place].kind in ("factor", "masked") or len(self.flow.nodes[place].factors) == 1:
            place = self.flow.nodes[place].inputs[0]
        writer = next((b.op for b in reading.branches if b.output == place), None)
        return f"output of {writer}" if writer else "stream"

    # --- in vain --------------------------------------------------------------------------------------------------

    def dropped(self, start: int, stop: int, useful: set[int]) -> tuple[BranchFacts, ...]:
        """Sub-layers of an interval of the tape that reach no output."""
        nodes, found = self.flow.nodes, []
        vain = [i for i in self.flow.made_between(start, stop) if i not in useful]
        inside = set(vain)
        for i in vain:
            if any(u in inside for u in self.flow.users[i]):
                continue
            content, stack = {i}, [i]
            while stack:
                for j in nodes[stack.pop()].inputs:
                    if j in inside and j not in content:
                        content.add(j)
                        stack.append(j)
            ordered = sorted(content)
            linear = [j for j in ordered if nodes[j].kind == "linear"]
            op = self.reader.attention(ordered) or ("ffn" if len(linear) > 1 else "")
            if op and linear:
                names = dict.fromkeys(
                    n for j in ordered for w in nodes[j].operands for n in self.flow.parameter_names(w)
                )
                found.append(BranchFacts(op, label(self.flow, ordered), {}, tuple(names)))
        return tuple(found)


def _activation(values: list[Value]) -> str | None:
    names = [v.name.rstrip("_") for v in values]
    for value, name in zip(values, names, strict=True):
        if name == "relu" and ("pow" in names or "square" in names):
            return "relu squared"
        if name == "gelu" and value.kwargs.get("approximate") == "tanh":
            return "gelu (tanh)"
        if name in ("gelu", "relu", "silu", "sigmoid", "mish", "softplus", "elu", "hardswish", "leaky_relu", "relu6"):
            return name
    return "gelu (tanh)" if "tanh" in names else "gelu" if "erf" in names else None


def living(tape: Tape) -> set[int]:
    """Values that any output depends on."""
    seen: set[int] = set()
    stack = [v for _, v in tape.outputs]
    while stack:
        value = stack.pop()
        if value.index not in seen:
            seen.add(value.index)
            stack += value.sources
    return seen


def dead_parameters(tape: Tape, alive: set[int]) -> tuple[str, ...]:
    """Parameters that no output depends on."""
    read = {v.name for v in tape.values if v.kind == "parameter" and v.index in alive}
    return tuple(name for name in tape.parameters if name not in read and tape.aliases.get(name) not in read)


def dead_inputs(tape: Tape, alive: set[int]) -> tuple[str, ...]:
    """Inputs that no output depends on."""
    return tuple(name for name, value in tape.inputs.items() if value.index not in alive)


def useful(flow: Flow, alive: set[int]) -> set[int]:
    """Nodes that any output depends on."""
    seen: set[int] = set()
    stack = [n.index for n in flow.nodes if n.value.index in alive]
    while stack:
        i = stack.pop()
        if i not in seen:
            seen.add(i)
            stack += flow.nodes[i].inputs
    return seen
