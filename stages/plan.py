"""A whole run as data: which stages, with which settings."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kernels.errors import Mistake
from pipeline.stage import StageConfig
from stages.chain import BESIDE, CHAIN, NAMES, Step, step_of
from stages.compare_superposition import CompareSuperpositionConfig
from stages.distill_peer import DistillPeerConfig
from stages.distill_symbols import DistillSymbolsConfig
from stages.finetune_int4 import FinetuneInt4Config
from stages.grow_int4 import GrowInt4Config
from stages.import_monet import ImportMonetConfig
from stages.import_peer import ImportPeerConfig
from stages.measure_superposition import MeasureSuperpositionConfig
from stages.prepare_corpus import PrepareCorpusConfig
from stages.quantize_int4 import QuantizeInt4Config
from stages.quantize_int8 import QuantizeInt8Config
from stages.record_activations import RecordActivationsConfig
from stages.report import ReportConfig
from stages.study_int4_ablation import StudyInt4AblationConfig
from stages.study_precision import StudyPrecisionConfig
from stages.train_dense import TrainDenseConfig
from stages.train_monet import TrainMonetConfig
from stages.train_peer import TrainPeerConfig


class Plan(BaseModel):
    """The settings of every stage, and the stages that a run goes through."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chain: tuple[str, ...] = Field(
        default=tuple(name for name in NAMES if name not in BESIDE),
        description="Stages of a run; each needs those that make its inputs.",
    )
    prepare_corpus: PrepareCorpusConfig = Field(
        default=PrepareCorpusConfig(), description="Which text, as which tokens."
    )
    train_dense: TrainDenseConfig = Field(default=TrainDenseConfig(), description="The dense baseline.")
    train_monet: TrainMonetConfig = Field(default=TrainMonetConfig(), description="Monet.")
    train_peer: TrainPeerConfig = Field(
        default=TrainPeerConfig(),
        description="PEER trained from random weights.",
    )
    import_monet: ImportMonetConfig = Field(
        default=ImportMonetConfig(), description="A checkpoint of Monet's public release."
    )
    import_peer: ImportPeerConfig = Field(default=ImportPeerConfig(), description="PEER layers of lucidrains' code.")
    distill_peer: DistillPeerConfig = Field(default=DistillPeerConfig(), description="Monet's conversion to PEER.")
    quantize_int8: QuantizeInt8Config = Field(default=QuantizeInt8Config(), description="Its tables in int8.")
    quantize_int4: QuantizeInt4Config = Field(default=QuantizeInt4Config(), description="Its tables in int4.")
    finetune_int4: FinetuneInt4Config = Field(default=FinetuneInt4Config(), description="Training in int4.")
    grow_int4: GrowInt4Config = Field(default=GrowInt4Config(), description="More experts, the same function.")
    distill_symbols: DistillSymbolsConfig = Field(default=DistillSymbolsConfig(), description="Formulas and logic.")
    report: ReportConfig = Field(default=ReportConfig(), description="The table and the picture at the end.")
    record_activations: RecordActivationsConfig = Field(
        default=RecordActivationsConfig(), description="Which experts fired on which tokens."
    )
    measure_superposition: MeasureSuperpositionConfig = Field(
        default=MeasureSuperpositionConfig(), description="Which pairs of experts are joint codes."
    )
    compare_superposition: CompareSuperpositionConfig = Field(
        default=CompareSuperpositionConfig(), description="The same of all models, side by side."
    )
    study_int4_ablation: StudyInt4AblationConfig = Field(
        default=StudyInt4AblationConfig(), description="What each part of int4 training buys."
    )
    study_precision: StudyPrecisionConfig = Field(
        default=StudyPrecisionConfig(), description="What a byte of expert table buys at each precision."
    )

    @model_validator(mode="after")
    def _chain_is_whole(self) -> "Plan":
        for name in self.chain:
            missing = set(step_of(name).inputs.values()) - set(self.chain)
            if missing:
                raise Mistake(f"chain has {name} without {', '.join(sorted(missing))}; add what its inputs come from")
            if step_of(name).of:
                raise Mistake(
                    f"chain has {name}, which takes several artifacts of one stage where a run makes one of each; run "
                    f"it by itself, after the run: python -m stages {name}"
                )
        return self

    def steps(self) -> tuple[Step, ...]:
        """The run's steps, in the order of the chain."""
        return tuple(step for step in CHAIN if step.name in self.chain)

    def config_of(self, step: Step) -> StageConfig:
        return getattr(self, step.field)

    def with_sources(self, sources: tuple[str, ...]) -> "Plan":
        """The same plan over other text."""
        corpus = PrepareCorpusConfig.model_validate({**plain(self.prepare_corpus), "sources": sources})
        return self.model_copy(update={"prepare_corpus": corpus})


def plain(model: BaseModel) -> dict[str, Any]:
    """The model as nested dicts, with the fields that recipes leave out, such as where the text is."""
    values = {name: getattr(model, name) for name in type(model).model_fields}
    return {name: plain(value) if isinstance(value, BaseModel) else value for name, value in values.items()}
