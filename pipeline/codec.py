"""Values to (kind, spec, tensors, files) and back: what a stage returns, as it lies in an artifact."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from pydantic import BaseModel, ValidationError
from torch import Tensor

from artifacts import Artifact, ArtifactError
from kernels.errors import Mistake


@runtime_checkable
class Persistent(Protocol):
    """What a value must offer to be an artifact. Kinds are slugs: code moves, artifacts stay."""

    @property
    def kind(self) -> str: ...

    @property
    def spec(self) -> BaseModel:
        """With the tensors and files, all that rebuilds the value."""
        ...

    def to_tensors(self) -> dict[str, Tensor]: ...

    def to_files(self) -> dict[str, bytes]: ...

    @classmethod
    def restore(
        cls, kind: str, spec: Mapping[str, Any], tensors: dict[str, Tensor], files: Mapping[str, Path]
    ) -> Self: ...


_CLASSES: dict[str, type[Persistent]] = {}

P = TypeVar("P", bound=type[Persistent])
V = TypeVar("V")


def artifact_kinds(*kinds: str):  # noqa: ANN201 - the decorator returns its class unchanged
    """Class decorator: artifacts of these kinds are restored by this class."""

    def wrap(cls: P) -> P:
        for kind in kinds:
            if kind in _CLASSES:
                raise Mistake(f"artifact kind {kind!r} is already restored by {_CLASSES[kind].__name__}")
            _CLASSES[kind] = cls
        return cls

    return wrap


HOMES = ("pipeline.corpus.splits", "pipeline.models.language_model", "pipeline.records.record", "pipeline.report")
"""Modules whose classes restore artifacts. They import this one, so that it imports them when they are first needed."""


def known_kinds() -> tuple[str, ...]:
    for home in HOMES:
        importlib.import_module(home)
    return tuple(sorted(_CLASSES))


def kinds_of(wanted: type[Persistent]) -> tuple[str, ...]:
    """Kinds that this class restores."""
    return tuple(kind for kind in known_kinds() if _CLASSES[kind] is wanted)


def load(artifact: Artifact) -> Persistent:
    """The value that an artifact holds, tensors on the CPU (memory-mapped until they are used)."""
    if artifact.kind not in _CLASSES and artifact.kind not in known_kinds():
        raise ArtifactError(
            f"{artifact.id} is of kind {artifact.kind!r}, which nothing here can open; "
            f"known kinds: {', '.join(known_kinds())}"
        )
    try:
        return _CLASSES[artifact.kind].restore(artifact.kind, artifact.spec, artifact.tensors(), artifact.files())
    except ArtifactError as error:
        raise ArtifactError(f"{artifact.id}: {error}") from None
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {'' if e['type'] == 'missing' else repr(e['input']) + ', '}{e['msg']}"
            for e in error.errors()
        )
        raise ArtifactError(
            f"{artifact.id} has a spec that this version does not read ({wrong}); make it again, or use the version "
            f"that made it, commit {artifact.lineage.commit}"
        ) from None


def load_as(wanted: type[V], artifact: Artifact) -> V:
    """The value that an artifact holds, of this class. ArtifactError where it is of another."""
    value = load(artifact)
    if not isinstance(value, wanted):
        raise ArtifactError(
            f"{artifact.id} is of kind {artifact.kind!r}, and {wanted.__name__} was needed here; name another artifact"
        )
    return value
