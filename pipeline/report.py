"""A report: rows of figures on other artifacts, with the pages and pictures drawn from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from artifacts.manifest import Metric
from pipeline.codec import artifact_kinds


class Row(BaseModel):
    """One artifact under examination."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="What the report calls it.")
    id: str = Field(description="The artifact that was measured; nothing for a trial within a study.")
    kind: str = Field(description="Its kind.")
    seconds: float = Field(allow_inf_nan=False, description="Time its stage took, in seconds.")
    metrics: dict[str, Metric] = Field(description="Its figures, by the names in artifacts/meanings.py.")


def trial_row(
    name: str, seed: int, numbers: Mapping[str, float], *, kind: Literal["trial", "tuning trial"] = "trial"
) -> Row:
    """A trial of a study, which is no artifact of its own. One of tuning chose a rate and is compared with nothing."""
    return Row(name=f"{name}, seed {seed}", id="", kind=kind, seconds=numbers["seconds"], metrics=dict(numbers))


class ReportSpec(BaseModel):
    """A report as plain data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[Row, ...] = Field(description="What was examined, in the order of the chain.")


@artifact_kinds("report")
class Report:
    """Figures and the files that show them; it has no tensors."""

    def __init__(self, spec: ReportSpec, files: Mapping[str, bytes]) -> None:
        self._spec = spec
        self.files = dict(files)

    @property
    def kind(self) -> str:
        return "report"

    @property
    def spec(self) -> ReportSpec:
        return self._spec

    def to_tensors(self) -> dict[str, Tensor]:
        return {}

    def to_files(self) -> dict[str, bytes]:
        return self.files

    @classmethod
    def restore(cls, kind: str, spec: Mapping[str, Any], tensors: dict[str, Tensor], files: Mapping[str, Path]) -> Self:
        return cls(ReportSpec.model_validate(spec), {name: path.read_bytes() for name, path in files.items()})
