"""Products of numbers and of learned vectors, as they are carried from one wiring to another."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Factor:
    """``number * product of the named vectors``; the names are parameters of the model that is converted, sorted."""

    number: float = 1.0
    names: tuple[str, ...] = ()

    def __mul__(self, other: "Factor") -> "Factor":
        return Factor(self.number * other.number, tuple(sorted(self.names + other.names)))

    def over(self, other: "Factor") -> "Factor | None":
        """``self / other``, or None where that would divide by zero or by a vector, which may hold zeros."""
        rest = list(self.names)
        for name in other.names:
            if name not in rest:
                return None
            rest.remove(name)
        return Factor(self.number / other.number, tuple(rest)) if other.number else None

    @property
    def is_one(self) -> bool:
        return self == Factor()
