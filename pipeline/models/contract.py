"""What every expert layer offers to all that builds, trains, measures, compresses and explains models.

Whoever asks this much of a layer, and no more, takes any kind of it, also one that is written outside of this house.
"""

# N tokens, D model width, E experts, P pairs (a token and an expert), M neurons of an expert, R rows that are asked
# for, G groups of a row with a scale each, X experts and Q pairs that are chosen

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kernels.errors import Mistake

W = TypeVar("W")


def bytes_of(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


class ExpertSpec(Protocol):
    """A frozen pydantic model from which an expert layer is built; `layer`, a literal, tells it from the others."""

    @property
    def layer(self) -> str: ...

    @property
    def kind(self) -> str:
        """The kind of the artifacts that hold such a model."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Which experts the tokens reach, in order of tokens. An expert that several heads of PEER reach has several pairs,
    whose contributions add up."""

    token_P: Tensor
    expert_P: Tensor
    gate_P: Tensor
    pre_PM: Tensor
    """Pre-activations of the expert's neurons: u . x + b; one, but in Monet. Of a symbol, what its function is of."""
    norm_P: Tensor
    """L2 norm of what the pair adds to the residual stream.

    An expert's own are its gate, its activations, its rows of v, and the biases b of Monet's experts; nobody's are
    PEER's biases of sub-keys and the output bias of a dense MLP.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Some pairs of a forward pass: all of some experts, and those of single experts on single tokens."""

    expert_X: Tensor
    """int64, ascending, none twice."""
    token_Q: Tensor
    """int64; with `expert_Q` none twice, and none of `expert_X`. Those of them that do not fire are no pairs."""
    expert_Q: Tensor

    def among(self, token_P: Tensor, expert_P: Tensor, num_experts: int) -> Tensor:
        """(P) bool: which of these pairs are chosen."""
        everywhere_E = torch.zeros(num_experts, dtype=torch.bool, device=expert_P.device)
        everywhere_E[self.expert_X] = True
        chosen_P = everywhere_E[expert_P]
        if len(self.token_Q):
            key_Q = self.token_Q * num_experts + self.expert_Q
            chosen_P |= torch.isin(token_P * num_experts + expert_P, key_Q)
        return chosen_P

    def to(self, device: torch.device) -> "Chosen":
        return Chosen(**{name: getattr(self, name).to(device) for name in self.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class Vectors:
    """What experts read and write, the rows of their neurons."""

    input_RMD: Tensor | None
    """u; None of experts that read by formulas."""
    output_RMD: Tensor
    """v"""


class Table(Protocol):
    """A row of weights for each expert of a layer, however they are stored; they may learn by a rule of their own."""

    @property
    def num_rows(self) -> int: ...

    @property
    def stored(self) -> Tensor:
        """What kernels/expert_sum reads."""
        ...

    @property
    def scales(self) -> Tensor | None:
        """(E), or (E, G) of more groups than one: what stored values are multiples of. None where they are floats."""
        ...

    def rows(self, row_R: Tensor) -> Tensor:
        """(R, D) rows as the forward pass reads them, float32 or higher."""
        ...

    def take(self, rows_ED: Tensor, clips: int = 1) -> None:
        """Stores what is nearest to these rows, at the best of `clips` scales a group where the format has a choice.

        ValueError names a row that has no scale.
        """
        ...

    def rows_below_smallest_scale(self, rows_ED: Tensor) -> int:
        """Of these rows those, not of zeros, that are stored at a larger scale since float16 rounds theirs coarsely."""
        ...

    def draw(self, rows: slice, weight_RD: Tensor, uniform_RD: Tensor) -> None:
        """Writes N(0, 1 / D) weights into these rows, rounded by uniform numbers in [0, 1)."""
        ...

    def move(self, row_R: Tensor, normal_RD: Tensor, uniform_RD: Tensor, learning_rate: float) -> int:
        """One step of the row rule against normalised gradients (kernels/sr_update/row_rule.py).

        Returns how many rows stayed as they were, their scale leaving float16.
        """
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Those that hold its rows; none where torch's optimizers do not learn them."""
        ...

    def state_bytes(self) -> int: ...


class ExpertLayer(nn.Module, ABC):
    """The experts of a block. `routing` is what the router of their kind returns; None where there is no router."""

    @property
    @abstractmethod
    def num_experts(self) -> int: ...

    @abstractmethod
    def forward(self, x_ND: Tensor, routing: Any) -> Tensor:
        """(N, D) what the experts add to the residual stream."""

    @abstractmethod
    def pairs(self, x_ND: Tensor, routing: Any) -> Pairs:
        """Who contributes to `forward`, and how much. Without gradients."""

    def added(self, x_ND: Tensor, routing: Any, chosen: Chosen) -> Tensor:
        """(N, D) the part of `forward` that is the chosen pairs' own: zeros on a token that has none of them. With
        gradients as `forward` has them.

        As it stands, for a layer whose output is linear in the rows of its table v, a parameter: a forward pass for
        all of `expert_X` and one for each of `expert_Q`. Others say it themselves, as all of this house do.
        """
        return _added_by_rows(self, x_ND, routing, chosen)

    @abstractmethod
    def tables(self) -> Mapping[str, Table]:
        """By name, those that are read row by row; none of a layer whose weights all experts or all tokens share."""

    @abstractmethod
    def state_bytes(self) -> int:
        """Of all that is its experts': their weights and biases and what finds them; not what is nobody's (`Pairs`)."""

    @abstractmethod
    def check(self, path: str) -> None:
        """ValueError that names what is wrong in its tensors beyond single numbers, which soundness.py checks.

        `path` is the layer's name in its model.
        """


def _added_by_rows(layer: ExpertLayer, x_ND: Tensor, routing: Any, chosen: Chosen) -> Tensor:
    """`ExpertLayer.added` by forward passes in which the rows of v of all other experts are zeros."""
    name, v_ED = _rows_of_v(layer)

    def of_experts(expert_X: Tensor) -> Tensor:
        row_E1 = torch.zeros(len(v_ED), 1, dtype=torch.bool, device=v_ED.device)
        row_E1[expert_X] = True
        return functional_call(layer, {name: v_ED.where(row_E1, 0.0)}, (x_ND, routing))

    none_ND = of_experts(chosen.expert_X[:0])
    added_ND = of_experts(chosen.expert_X) - none_ND
    for expert in chosen.expert_Q.unique():
        token_X = chosen.token_Q[chosen.expert_Q == expert]
        part_XD = (of_experts(expert[None]) - none_ND)[token_X]
        added_ND = added_ND.index_add(0, token_X, part_XD)
    return added_ND


def _rows_of_v(layer: ExpertLayer) -> tuple[str, nn.Parameter]:
    """The parameter that is its table v, and its name in the layer."""
    own = {id(parameter): name for name, parameter in layer.named_parameters()}
    table = layer.tables().get("v")
    for parameter in () if table is None else table.parameters():
        if id(parameter) in own and len(parameter) == layer.num_experts:
            return own[id(parameter)], parameter
    raise Mistake(
        f"{type(layer).__name__} does not say what single experts add, and has no table v that is its parameter; give "
        "it the method `added` of pipeline/models/contract.py"
    )


def vectors_of_tables(layer: ExpertLayer, row_R: Tensor) -> Vectors:
    """Of a layer of single neurons, by its tables u and v. ValueError where there is no table v."""
    tables = layer.tables()
    if "v" not in tables:
        raise Mistake(f"{type(layer).__name__} has no table 'v', so what its experts write is not known")
    u = tables.get("u")
    return Vectors(input_RMD=None if u is None else u.rows(row_R)[:, None], output_RMD=tables["v"].rows(row_R)[:, None])


def leaves(module: nn.Module) -> list[ExpertLayer]:
    """The expert layers in this module that have none within them."""
    below = [leaf for child in module.children() for leaf in leaves(child)]
    return below or ([module] if isinstance(module, ExpertLayer) else [])


def wanted(value: object, kind: type[W], what: str) -> W:
    """The value itself. ValueError that says what it is, where another class was needed."""
    if not isinstance(value, kind):
        raise Mistake(f"{what} is {type(value).__name__}, and {kind.__name__} was needed; use a model of another kind")
    return value
