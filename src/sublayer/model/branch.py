"""The shape that ``attn`` and ``ffn`` share: products of what is read, something between, one product to the output."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from sublayer.model.context import Context


class Branch(nn.Module):
    """``output(inside(project(hidden)))``.

    Branches side by side share products by these steps (`sublayer.model.fused`), so each step is all that a subclass
    does there: :attr:`inputs` read ``hidden`` and nothing else does; after :attr:`last` comes dropout alone.
    """

    dropout: nn.Dropout

    @property
    @abstractmethod
    def inputs(self) -> tuple[nn.Module, ...]:
        """The linear maps of the hidden states, in the order of :meth:`project`."""

    @property
    @abstractmethod
    def last(self) -> nn.Module:
        """The linear map to the output."""

    @abstractmethod
    def inside(self, projected: Sequence[Tensor], context: Context | None) -> Tensor:
        """From what :meth:`project` gives to what :attr:`last` reads, ``[batch, seq, inner]``."""

    def project(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """The input products of ``hidden [batch, seq, d]``, one after another."""
        return tuple(linear(hidden) for linear in self.inputs)

    def output(self, inner: Tensor) -> Tensor:
        """The output product and its dropout, ``[batch, seq, d]``."""
        output: Tensor = self.dropout(self.last(inner))
        return output
