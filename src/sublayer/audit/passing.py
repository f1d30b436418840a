"""How many values pass each place of the tape: a layer begins where the fewest do."""

from itertools import accumulate

from sublayer.audit.flow import Flow
from sublayer.audit.tape import Tape


class Passing:
    """How many needed values of a flow pass each place of the tape."""

    def __init__(self, tape: Tape, flow: Flow) -> None:
        size = len(tape.values) + 1
        self.made = [0] * (size + 1)  # needed nodes before a place
        change = [0] * (size + 1)
        needed = _needed(tape, flow)
        for i in needed:
            begin = flow.nodes[i].value.index
            end = max((flow.nodes[u].value.index for u in flow.users[i] if u in needed), default=size - 1)
            self.made[begin + 1] += 1
            change[begin + 1] += 1
            change[end + 1] -= 1
        self.count = [*accumulate(change)]
        self.made = [*accumulate(self.made)]

    def fewest(self, start: int, stop: int, last: bool) -> int:
        """The first or last place from ``start`` to ``stop`` that the fewest values pass."""
        places = [p for p in range(start, stop + 1) if self.count[p]] or [start]
        least = min(self.count[p] for p in places)
        return next(p for p in (reversed(places) if last else places) if self.count[p] == least)

    def after(self, start: int, nodes: int) -> int:
        """The place behind that many needed nodes."""
        place = start
        while place < len(self.made) - 2 and self.made[place] < self.made[start] + nodes:
            place += 1
        return place


def _needed(tape: Tape, flow: Flow) -> set[int]:
    stack = [flow.of[v.index] for _, v in tape.outputs if v.index in flow.of]
    found: set[int] = set()
    while stack:
        i = stack.pop()
        if i not in found:
            found.add(i)
            stack += flow.nodes[i].inputs
    return found
