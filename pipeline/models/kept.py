"""What is made of a module's tensors once, and again whenever one of them is another or was written to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import Generic, TypeVar

from torch import Tensor, nn

Made = TypeVar("Made")
_version = attrgetter("_version")


@dataclass(slots=True)
class _State(Generic[Made]):
    children: list[nn.Module | None]
    homes: list[Mapping[str, Tensor | None]]
    """Where the tensors are looked up: dicts of the module and its children that have any."""
    found: list[Tensor | None]
    """What was there, tensors and names without one."""
    tensors: list[Tensor]
    versions: list[int] | None
    """None where a tensor of inference mode is among them: it counts no writes, so that nothing is kept."""
    parameters: list[nn.Parameter]
    addresses: list[int]
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
        state = self._state
        if state is not None and state.beside is beside and _unchanged(state, module):
            return state.made
        self._state = _state(module, beside, make())
        return self._state.made


def _unchanged(state: _State[Made], module: nn.Module) -> bool:
    found: list[Tensor | None] = []
    for home in state.homes:
        found += home.values()
    return (
        [*module._modules.values()] == state.children
        and len(found) == len(state.found)
        and all(map(is_, found, state.found))
        and state.versions is not None
        and list(map(_version, state.tensors)) == state.versions
        and list(map(Tensor.data_ptr, state.parameters)) == state.addresses
    )


def _state(module: nn.Module, beside: object, made: Made) -> _State[Made]:
    children = [*module._modules.values()]
    modules = [module, *(child for child in children if child is not None)]
    homes: list[Mapping[str, Tensor | None]] = [
        home for each in modules for home in (each._parameters, each._buffers) if home
    ]
    found = [tensor for home in homes for tensor in home.values()]
    tensors = [tensor for tensor in found if tensor is not None]
    parameters = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
    counted = not any(tensor.is_inference() for tensor in tensors)
    return _State(
        children=children, homes=homes, found=found, tensors=tensors,
        versions=list(map(_version, tensors)) if counted else None,
        parameters=parameters, addresses=list(map(Tensor.data_ptr, parameters)), beside=beside, made=made,
    )  # fmt: skip
