"""What happens to the stream before the first layer of a stack and after the last."""

from typing import Protocol

from sublayer.audit.acts import Unread
from sublayer.audit.flow import Flow
from sublayer.audit.places import averages
from sublayer.audit.section import Reading

BEHIND = "e is made of what the layers before leave; how could not be read"


class SectionOf(Protocol):
    """Reads the statements from some named values to others."""

    def __call__(
        self,
        before: dict[int, str],
        after: dict[int, str],
        width: int,
        also: dict[str, int] | None = None,
        *,
        ends: bool = False,
    ) -> Reading: ...


class EndReader:
    """Reads embed and final.

    Args:
        flow: the data's graph.
        section: reads a section.
        needed: the nodes that the output depends on.
        output: the node of the output.
        floor: where the stack before ends on the tape; 0 if there is none.
    """

    def __init__(self, flow: Flow, section: SectionOf, needed: set[int], output: int, floor: int) -> None:
        self.flow, self.section, self.needed, self.output, self.floor = flow, section, needed, output, floor

    def embed(self, first: dict[int, str], width: int, also: dict[str, int]) -> tuple[int, Reading | None, list[str]]:
        """What happens to the stream between the embedding and the first layer.

        The embedding is the highest single value from which the way to the first layer can be read.
        """
        nodes = self.flow.nodes
        chain = [min(first)]
        for node in first:
            chain[0] = self.flow.meet(chain[0], node)
        while chain[-1] >= 0 and nodes[chain[-1]].inputs:
            chain.append(nodes[chain[-1]].top)
        above = next((i for i in chain if i >= 0 and nodes[i].value.index < self.floor), None)
        if self.floor and above is not None and self._follows(above, first):
            # What the stage before leaves: the way from there is all of what stands between the two.
            try:
                return above, self.section({above: "e"}, first, width, also), []
            except Unread:
                pass
        # Nothing is followed into a stack that came before.
        candidates = [i for i in reversed(chain) if i >= 0 and nodes[i].value.index >= self.floor] or chain[:1]
        for root in candidates:
            if nodes[root].kind == "source" and nodes[root].value.dtype.is_floating_point is False:
                continue
            try:
                reading = self.section({root: "e"}, first, width, also)
            except Unread:
                continue
            if self._plain_start(reading, root):
                return root, reading, [BEHIND] if self.floor and nodes[root].value.index >= self.floor else []
        return candidates[-1] if candidates else -1, None, ["what is done before the first layer could not be read"]

    def _follows(self, above: int, first: dict[int, str]) -> bool:
        """Whether all that leads from a value to a stack was made behind the stack before it."""
        between = {i for node in first if node != above for i in (*self.flow.between(above, node), node)}
        return all(self.flow.nodes[i].value.index >= self.floor for i in between)

    def _plain_start(self, reading: Reading, root: int) -> bool:
        ops = reading.ops
        if not any(op in ("op", "mixer", "moe") for op in ops):
            return True
        # An embedding that is normed and then brought to the stream's width.
        below = [b for b in reading.branches if b.op == "op"]
        normed = {n for n, _ in reading.norms}
        return ops == ["op"] and below[0].source in normed and self.flow.nodes[below[0].source].inputs == (root,)

    def final(self, last: dict[int, str], width: int, ends: bool) -> Reading | None:
        """What happens to the stream after the last layer and before the head; what comes before the next stage is
        that one's beginning."""
        if not ends:
            return self.section(last, {next(i for i, n in last.items() if n == "x"): "x"}, width)
        end = self._head()
        if end is not None and end not in last:
            try:
                reading = self.section(last, {end: "x"}, width, ends=True)
                if not any(op in ("op", "mixer", "moe") for op in reading.ops):
                    return reading
            except Unread:
                pass
        # The head is more than a matrix: only norms and sums that come first are the stream's.
        place = self._forward(last)
        try:
            return self.section(last, {place: "x"}, width, ends=True)
        except Unread:
            return None

    def beside(self, last: set[int], passing: set[int]) -> set[int]:
        """The values that pass all layers untouched and that norms and sums add to what the last layer leaves: streams
        too, then."""
        nodes = self.flow.nodes
        end = self._head()
        found: set[int] = set()
        seen: set[int] = set()
        stack = [end] if end is not None else []
        while stack:
            i = stack.pop()
            if i in passing:
                found.add(i)
            elif i not in last and i not in seen:
                if nodes[i].kind not in ("norm", "sum", "factor", "stop") or not nodes[i].inputs:
                    return set()
                seen.add(i)
                stack += nodes[i].inputs
        return found

    def _head(self) -> int | None:
        """The node that the head's matrix reads, or the output itself where there is no head."""
        nodes = self.flow.nodes
        place = self.output
        if self._is_stream_like(place):
            return place
        for _ in range(8):
            node = nodes[place]
            if node.kind == "linear":
                return node.inputs[0]
            if len(node.inputs) != 1:
                return None
            place = node.inputs[0]
        return None

    def _is_stream_like(self, place: int) -> bool:
        return self.flow.nodes[place].kind in ("norm", "sum", "factor", "stop")

    def _forward(self, last: dict[int, str]) -> int:
        """The furthest value that norms, sums, factors and a mean over all positions make of the streams."""
        nodes = self.flow.nodes
        reached = set(last)
        for i in sorted(self.needed):
            if i <= min(last) or i in reached or not nodes[i].inputs:
                continue
            passes = nodes[i].kind in ("norm", "sum", "factor", "stop") or averages(self.flow, nodes[i])
            if passes and all(j in reached for j in nodes[i].inputs):
                reached.add(i)
        new = [i for i in reached if i not in last and not averages(self.flow, nodes[i])]
        return max(new) if new else next(i for i, n in last.items() if n == "x")
