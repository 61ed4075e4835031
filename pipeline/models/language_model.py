"""A language model as it lies in an artifact: the transformer with one of the expert layers, and its spec."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema
from torch import Tensor, nn

from artifacts import ArtifactError
from pipeline.codec import artifact_kinds
from pipeline.models.allocation import WithinFile
from pipeline.models.contract import ExpertLayer, ExpertSpec, wanted
from pipeline.models.dense import DENSE
from pipeline.models.monet import MONET
from pipeline.models.peer.cells import take_forms
from pipeline.models.peer.layer import PEER
from pipeline.models.registry import LAYER_KINDS, LayerKind, Use, enter, kind_of
from pipeline.models.soundness import REMEDY, check_sound
from pipeline.models.symbols import SYMBOLS
from pipeline.models.transformer import Transformer, TransformerSpec, Visit

S = TypeVar("S")

HOUSE = (DENSE, MONET, PEER, SYMBOLS)
"""The kinds of expert layer of this house, a line each."""

for _kind in HOUSE:
    enter(_kind)


class _AnyRegistered:
    """Is read as the spec of that registered kind which `layer` names."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        specs = tuple(kind.spec for kind in LAYER_KINDS.values())
        return handler.generate_schema(Annotated[Union[specs], Field(discriminator="layer")])  # noqa: UP007


class ModelSpec(BaseModel):
    """All that rebuilds a model, but for its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transformer: TransformerSpec = Field(description="Shape of everything but the expert layers.")
    experts: Annotated[ExpertSpec, _AnyRegistered()] = Field(description="Shape of the expert layers.")

    @model_validator(mode="after")
    def _fits(self) -> "ModelSpec":
        kind_of(self.experts).fits(self.experts, self.transformer)
        return self

    def experts_as(self, kind: type[S]) -> S:
        """The spec of the expert layers. ValueError where it is of another kind."""
        return wanted(self.experts, kind, f"the expert spec of a {self.experts.kind!r}")


@dataclass(frozen=True, slots=True)
class LayersOf:
    """The modules that an expert spec asks for; what a `Transformer` takes as its expert layer."""

    spec: ExpertSpec

    def router(self, d_model: int, layer: int) -> nn.Module | None:
        return kind_of(self.spec).router(self.spec, d_model, layer)

    def experts(self, d_model: int, layer: int) -> ExpertLayer:
        return kind_of(self.spec).experts(self.spec, d_model, layer)


def _check_tensors(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """ArtifactError unless the tensors are those of the model by name, shape and dtype."""
    for name in sorted(wanted.keys() | got.keys()):
        ours, theirs = (f"{tuple(t[name].shape)} of {t[name].dtype}" if name in t else "none" for t in (wanted, got))
        if ours != theirs:
            raise ArtifactError(
                f"tensor {name!r} is {theirs}, where this version wants {ours}; make the artifact again, or use the "
                "version that made it"
            )


@artifact_kinds(*(name for kind in HOUSE for name in kind.artifact_kinds))
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

    def use_of(self, visit: Visit) -> Use:
        """What a visit says of how its tokens used the experts."""
        return kind_of(self._spec.experts).use(visit)

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
        take_forms(model, tensors)
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


def register_expert_layer(kind: LayerKind[Any]) -> None:
    """Makes models of this kind of expert layer buildable, readable and measurable, from a file outside of this house.

    `ModelSpec.experts` is the union of all registered specs, told apart by their field `layer`. pydantic compiled it
    when `ModelSpec` was made, so it is compiled anew here; then a spec of this kind is validated, written and read as
    any other. Artifacts of its kinds are opened by `LanguageModel`. A process that opens such an artifact imports the
    file that registers the kind first.
    """
    enter(kind)
    ModelSpec.model_rebuild(force=True)
    artifact_kinds(*kind.artifact_kinds)(LanguageModel)
