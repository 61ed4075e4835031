"""A language model as it lies in an artifact: the transformer with one of the expert layers, and its spec."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from artifacts import ArtifactError
from pipeline.codec import artifact_kinds
from pipeline.models.allocation import WithinFile
from pipeline.models.dense import DenseMLP, DenseSpec
from pipeline.models.monet import MoHDE, MonetRouter, MonetSpec, MoVDE
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.soundness import REMEDY, check_sound
from pipeline.models.symbols import SymbolExperts, SymbolRouter, SymbolSpec
from pipeline.models.tables.experts import QuantizedExperts
from pipeline.models.transformer import Transformer, TransformerSpec

ExpertSpec = Annotated[DenseSpec | MonetSpec | PeerSpec | SymbolSpec, Field(discriminator="layer")]


class ModelSpec(BaseModel):
    """All that rebuilds a model, but for its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transformer: TransformerSpec = Field(description="Shape of everything but the expert layers.")
    experts: ExpertSpec = Field(description="Shape of the expert layers.")

    @model_validator(mode="after")
    def _fits(self) -> "ModelSpec":
        if isinstance(self.experts, SymbolSpec):
            self.experts.check_fits(self.transformer)
        return self


@dataclass(frozen=True, slots=True)
class LayersOf:
    """The modules that an expert spec asks for; what a `Transformer` takes as its expert layer."""

    spec: ExpertSpec

    def router(self, d_model: int, layer: int) -> nn.Module | None:
        match self.spec:
            case MonetSpec() if layer % self.spec.router_group == 0:
                return MonetRouter(self.spec, d_model)
            case PeerSpec() if layer % self.spec.router_group == 0:
                return PeerRouter(self.spec, d_model)
            case SymbolSpec() if layer % self.spec.peer.router_group == 0:
                return SymbolRouter(self.spec, d_model)
            case _:
                return None

    def experts(self, d_model: int, layer: int) -> nn.Module:
        match self.spec:
            case DenseSpec():
                return DenseMLP(self.spec, d_model)
            case MonetSpec(decomposition="horizontal"):
                return MoHDE(self.spec, d_model)
            case MonetSpec():
                return MoVDE(self.spec, d_model)
            case PeerSpec(precision="float"):
                return PeerExperts(self.spec, d_model)
            case PeerSpec():
                return QuantizedExperts(self.spec, d_model)
            case SymbolSpec():
                return SymbolExperts(self.spec, d_model, layer)


def _check_tensors(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """ArtifactError unless the tensors are those of the model by name, shape and dtype."""
    for name in sorted(wanted.keys() | got.keys()):
        ours, theirs = (f"{tuple(t[name].shape)} of {t[name].dtype}" if name in t else "none" for t in (wanted, got))
        if ours != theirs:
            raise ArtifactError(
                f"tensor {name!r} is {theirs}, where this version wants {ours}; make the artifact again, or use the "
                "version that made it"
            )


@artifact_kinds("dense", "monet", "peer", "peer-int8", "peer-int4", "symbols")
class LanguageModel(Transformer):
    """A transformer that knows its spec, so that it can be written and read back."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec.transformer, LayersOf(spec.experts))
        self._spec = spec

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def kind(self) -> str:
        return self._spec.experts.kind

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(self.state_dict())

    def to_files(self) -> dict[str, bytes]:
        return {}

    @classmethod
    def restore(cls, kind: str, spec: Mapping[str, Any], tensors: dict[str, Tensor], files: Mapping[str, Path]) -> Self:
        checked = ModelSpec.model_validate(spec)
        if checked.experts.kind != kind:
            raise ArtifactError(f"it is of kind {kind!r}, but its spec is that of a {checked.experts.kind!r}; {REMEDY}")
        model = cls._built(checked, tensors)
        tensors = dict(tensors)
        for name, module in model.named_modules():
            if isinstance(module, CellIndex):
                module.take_form(tensors, f"{name}.")
        _check_tensors(model.state_dict(), tensors)
        model.load_state_dict(tensors)
        check_sound(model)
        return model

    @classmethod
    def _built(cls, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> Self:
        """In evaluation, no larger than these tensors."""
        with WithinFile(tensors.values()):
            try:
                return cls(spec).eval()
            except ValueError as error:  # of fields that do not fit each other
                raise ArtifactError(f"its spec makes no model: {error}") from None
