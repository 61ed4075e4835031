"""What is made of a module's tensors once, and again whenever one of them is another or was written to."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import Generic, TypeVar

from torch import Tensor, nn

Made = TypeVar("Made")
_version = attrgetter("_version")


@dataclass(slots=True)
class _State(Generic[Made]):
    tensors: list[Tensor]
    addresses: list[int]
    versions: list[int]
    beside: object
    made: Made


class Kept(Generic[Made]):
    """Keeps what was made of a module's own and its children's tensors, while they stay what they were.

    A copy keeps nothing. Finding out costs about as much as a token's experts, so no more is done than must be: writing
    to a tensor raises its version, a buffer that is moved or cast is another object, a parameter then lies elsewhere.
    """

    def __init__(self) -> None:
        self._state: _State[Made] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()

    def of(self, module: nn.Module, beside: object, make: Callable[[], Made]) -> Made:
        """What `make` makes of the module, and of `beside`, which is compared by identity."""
        parameters: list[Tensor | None] = [*module._parameters.values()]
        buffers: list[Tensor | None] = [*module._buffers.values()]
        for child in module._modules.values():
            if child is not None:
                parameters += child._parameters.values()
                buffers += child._buffers.values()
        tensors = [parameter for parameter in parameters if parameter is not None]
        addresses = list(map(Tensor.data_ptr, tensors))
        tensors += [buffer for buffer in buffers if buffer is not None]
        versions, state = _versions(tensors), self._state
        if (
            state is not None
            and state.versions == versions
            and state.addresses == addresses
            and state.beside is beside
            and all(map(is_, state.tensors, tensors))
        ):
            return state.made
        self._state = _State(tensors, addresses, versions, beside, make())
        return self._state.made


def _versions(tensors: list[Tensor]) -> list[int]:
    try:
        return list(map(_version, tensors))
    except RuntimeError:  # tensors of inference mode count no writes, and cannot be written to outside of it
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
