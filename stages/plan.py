"""A whole run: which stages, in which order, with which settings. Presets are functions that return a Plan."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from artifacts import ArtifactId, Manifest, Store
from pipeline.measuring.compressors import MOST_PRIMING_TOKENS, CompressorsConfig
from pipeline.measuring.held_out import MeasureConfig
from pipeline.models.dense import DenseSpec
from pipeline.models.equal_size import dense_as_large_as
from pipeline.models.monet import MonetSpec
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.transformer import TransformerShape
from pipeline.stage import Stage, StageConfig
from pipeline.studies.variants import ArmConfig
from pipeline.training.config import TrainingConfig
from stages.distill_peer import DistillPeerConfig, distill_peer
from stages.distill_symbols import DistillSymbolsConfig, distill_symbols
from stages.finetune_int4 import FinetuneInt4Config, finetune_int4
from stages.grow_int4 import GrowInt4Config, grow_int4
from stages.prepare_corpus import PrepareCorpusConfig, prepare_corpus
from stages.quantize_int4 import QuantizeInt4Config, quantize_int4
from stages.quantize_int8 import QuantizeInt8Config, quantize_int8
from stages.report import ReportConfig, report
from stages.study_int4_ablation import StudyInt4AblationConfig, study_int4_ablation
from stages.study_precision import StudyPrecisionConfig, study_precision
from stages.train_dense import TrainDenseConfig, train_dense
from stages.train_monet import TrainMonetConfig, train_monet
from stages.train_peer import TrainPeerConfig, train_peer


@dataclass(frozen=True, slots=True)
class Step:
    """A stage in its place: which stage makes each of its inputs."""

    stage: Stage
    inputs: Mapping[str, str]
    teacher: str | None = None
    """The input that the stage's model is measured against."""

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def field(self) -> str:
        """The stage's name in Python and on a `Plan`."""
        return self.name.replace("-", "_")


CHAIN: tuple[Step, ...] = (
    Step(prepare_corpus, {}),
    Step(train_dense, {"corpus": "prepare-corpus"}),
    Step(train_monet, {"corpus": "prepare-corpus"}),
    Step(train_peer, {"corpus": "prepare-corpus"}),
    Step(distill_peer, {"corpus": "prepare-corpus", "monet": "train-monet"}, teacher="monet"),
    Step(quantize_int8, {"corpus": "prepare-corpus", "peer": "distill-peer"}, teacher="peer"),
    Step(quantize_int4, {"corpus": "prepare-corpus", "peer": "distill-peer"}, teacher="peer"),
    Step(finetune_int4, {"corpus": "prepare-corpus", "int4": "quantize-int4", "peer": "distill-peer"}, teacher="peer"),
    Step(grow_int4, {"corpus": "prepare-corpus", "int4": "finetune-int4"}, teacher="int4"),
    Step(distill_symbols, {"corpus": "prepare-corpus", "int4": "finetune-int4"}, teacher="int4"),
    Step(
        report,
        {
            "corpus": "prepare-corpus",
            "dense": "train-dense",
            "monet": "train-monet",
            "peer": "distill-peer",
            "int8": "quantize-int8",
            "int4": "quantize-int4",
            "tuned": "finetune-int4",
            "symbols": "distill-symbols",
        },
    ),
    Step(study_int4_ablation, {"corpus": "prepare-corpus"}),
    Step(study_precision, {"corpus": "prepare-corpus"}),
)
NAMES: tuple[str, ...] = tuple(step.name for step in CHAIN)
BESIDE = frozenset(("train-peer", "grow-int4", "study-int4-ablation", "study-precision"))
"""Stages that a run leaves out unless its plan names them."""


def step_of(name: str) -> Step:
    """The step of this stage; ValueError names the stages there are."""
    for step in CHAIN:
        if step.name == name:
            return step
    raise ValueError(unknown("stage", name, NAMES))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence on a name that is not known."""
    names = list(known)
    return f"unknown {what} {name!r}{did_you_mean(name, names)}; known are: {', '.join(names)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The known names that are close to this one, as the middle of a sentence; or nothing."""
    close = difflib.get_close_matches(name, known, n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def made_from(name: str) -> frozenset[str]:
    """The stage and every one below it that its artifact goes into."""
    step_of(name)
    found = {name}
    for step in CHAIN:
        if found.intersection(step.inputs.values()):
            found.add(step.name)
    return frozenset(found)


def inputs_of(
    step: Step,
    given: Mapping[str, str],
    store: Store,
    make: Callable[[Step, Mapping[str, ArtifactId]], ArtifactId],
    *,
    plan: "Plan | None" = None,
) -> dict[str, ArtifactId]:
    """The ids of a step's inputs. `given` may name some of them, "latest" being the latest of its kind.

    Any other is the one that the inputs found so far were made from, else the latest that the chain's stage made, with
    whatever config or (it and all it was made from) with those of a plan, and if there is one made from what they
    were made from; else it is made: `make(step, its inputs)`.
    """
    found = {role: store.resolve(id, kind=step.stage.inputs[role].kinds) for role, id in given.items()}
    # Inputs far down the chain first: they decide which of the others belong to them.
    for role in sorted(step.inputs, key=lambda role: NAMES.index(step.inputs[role]), reverse=True):
        if role not in found:
            producer = step_of(step.inputs[role])
            found[role] = (
                _ancestor(producer.name, found.values(), store)
                or _latest(producer.name, store, plan, beside=found.values())
                or make(producer, inputs_of(producer, {}, store, make, plan=plan))
            )
    return {role: found[role] for role in step.inputs}


def _latest(stage: str, store: Store, plan: "Plan | None", *, beside: Iterable[str]) -> ArtifactId | None:
    made = [m for m in reversed(store.manifests()) if m.lineage.stage == stage and _is_planned(m, store, plan)]
    theirs: dict[str, set[str]] = {}
    for id in beside:
        for ancestor in store.ancestry(id):
            theirs.setdefault(ancestor.lineage.stage, set()).add(ancestor.id)

    def shares(id: ArtifactId) -> bool:
        return all(m.id in theirs.get(m.lineage.stage, {m.id}) for m in store.ancestry(id) if m.id != id)

    if theirs and (sharing := next((m.id for m in made if shares(m.id)), None)) is not None:
        return sharing
    return made[0].id if made else None


def _is_planned(manifest: Manifest, store: Store, plan: "Plan | None") -> bool:
    """Whether it and all it was made from have the plan's settings; of no plan, any have."""
    if plan is None:
        return True
    planned = {step.name: plan.config_of(step).model_dump(mode="json") for step in CHAIN}
    return all(m.lineage.config == planned.get(m.lineage.stage) for m in store.ancestry(manifest.id))


def _ancestor(stage: str, ids: Iterable[ArtifactId], store: Store) -> ArtifactId | None:
    """What this stage made, among all that these artifacts were made from; the newest if there are several."""
    manifests = {m.id: m for id in ids for m in store.ancestry(id) if m.lineage.stage == stage}
    return max(manifests, key=lambda id: manifests[id].lineage.sequence) if manifests else None


def plain(model: BaseModel) -> dict[str, Any]:
    """The model as nested dicts, with the fields that recipes leave out, such as where the text is."""
    values = {name: getattr(model, name) for name in type(model).model_fields}
    return {name: plain(value) if isinstance(value, BaseModel) else value for name, value in values.items()}


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
    distill_peer: DistillPeerConfig = Field(default=DistillPeerConfig(), description="Monet's conversion to PEER.")
    quantize_int8: QuantizeInt8Config = Field(default=QuantizeInt8Config(), description="Its tables in int8.")
    quantize_int4: QuantizeInt4Config = Field(default=QuantizeInt4Config(), description="Its tables in int4.")
    finetune_int4: FinetuneInt4Config = Field(default=FinetuneInt4Config(), description="Training in int4.")
    grow_int4: GrowInt4Config = Field(default=GrowInt4Config(), description="More experts, the same function.")
    distill_symbols: DistillSymbolsConfig = Field(default=DistillSymbolsConfig(), description="Formulas and logic.")
    report: ReportConfig = Field(default=ReportConfig(), description="The table and the picture at the end.")
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
                raise ValueError(
                    f"chain has {name} without {', '.join(sorted(missing))}; add what its inputs come from"
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


def tiny() -> Plan:
    """Width 128, 4 layers, 1.5M tokens, 4,096 experts a block: 2 cores, about ten minutes for all stages."""
    return Plan()


def small() -> Plan:
    """Width 256, 4 layers, 4M tokens, 16,384 experts a block: 2 cores, about an hour for all stages."""
    return _plan(
        shape=TransformerShape(d_model=256),
        monet=MonetSpec(num_sub_experts=64),
        peer=PeerSpec(num_keys=128, num_experts=16_384),
        training=TrainingConfig(steps=2000, batch_size=16, learning_rate=3e-3),
        vocab_size=4096,
        experts_kept=16_384,
        distill_steps=200,
    )


def gpu() -> Plan:
    """Width 768, 12 layers, 131M tokens, 1,048,576 experts a block: one GPU."""
    return _plan(
        shape=TransformerShape(d_model=768, num_layers=12, num_heads=12, num_kv_heads=12),
        monet=MonetSpec(num_sub_experts=256, num_heads=4, active_sub_experts=8, router_group=4),
        peer=PeerSpec(num_keys=1024, num_experts=1_048_576, num_heads=8, d_key=128, pairs_per_head=16),
        training=TrainingConfig(steps=4000, batch_size=64, context_length=512, learning_rate=1e-3, warmup_steps=400),
        vocab_size=16_384,
        experts_kept=1_048_576,
        distill_steps=400,
    )


def shakespeare() -> Plan:
    """Bytes of one text, the last tenth held out: dense, Monet and PEER at width 128, 2000 steps each."""
    training = TrainingConfig(steps=2000, batch_size=12, context_length=64, learning_rate=2e-3)
    measure = MeasureConfig(tokens=10_000_000)  # all there are
    return Plan(
        chain=("prepare-corpus", "train-dense", "train-monet", "train-peer"),
        prepare_corpus=PrepareCorpusConfig(
            tokenizer="bytes",
            validation_share=0.01,
            held_out_share=0.1,
            compressors=_compressors(training).model_copy(update={"tokens": measure.tokens}),
        ),
        train_dense=TrainDenseConfig(training=training, measure=measure),
        train_monet=TrainMonetConfig(training=training, measure=measure),
        train_peer=TrainPeerConfig(training=training, measure=measure),
    )


def monet_850m() -> Plan:
    """Monet 850M as in the paper, 100B tokens of FineWeb-Edu: a cluster."""
    return _paper(d_model=1536, num_layers=24)


def monet_1_4b() -> Plan:
    """Monet 1.4B as in the paper, 100B tokens of FineWeb-Edu: a cluster."""
    return _paper(d_model=2048, num_layers=24)


def monet_4_1b() -> Plan:
    """Monet 4.1B as in the paper, 100B tokens of FineWeb-Edu: a cluster."""
    return _paper(d_model=3072, num_layers=32)


PRESETS: Mapping[str, Callable[[], Plan]] = {
    preset.__name__: preset for preset in (tiny, small, gpu, shakespeare, monet_850m, monet_1_4b, monet_4_1b)
}


def preset_of(name: str) -> Plan:
    """The plan of this name; ValueError names the presets there are."""
    if name not in PRESETS:
        raise ValueError(unknown("preset", name, PRESETS))
    return PRESETS[name]()


def _plan(
    *,
    shape: TransformerShape,
    monet: MonetSpec,
    peer: PeerSpec,
    training: TrainingConfig,
    vocab_size: int,
    experts_kept: int,
    distill_steps: int,
) -> Plan:
    """The tiny plan at another size. The dense model has as many parameters as Monet."""
    base, length = Plan(), training.context_length

    def shorter(config: TrainingConfig, steps: int) -> TrainingConfig:
        return config.model_copy(update={"steps": steps, "batch_size": training.batch_size, "context_length": length})

    def studied(arm: ArmConfig, factor: int) -> ArmConfig:
        """Two blocks of this width with so many times the plan's experts a block."""
        pool = {"num_keys": peer.num_keys * math.isqrt(factor), "num_experts": peer.num_experts * factor}
        return arm.model_copy(
            update={
                "transformer": shape.model_copy(update={"num_layers": 2}),
                "peer": PeerSpec.model_validate({**peer.model_dump(), **pool}),
                "training": arm.training.model_copy(
                    update={"batch_size": training.batch_size, "context_length": length}
                ),
            }
        )

    distill, finetune = base.distill_peer, base.finetune_int4
    return Plan(
        prepare_corpus=PrepareCorpusConfig(vocab_size=vocab_size, compressors=_compressors(training)),
        train_dense=TrainDenseConfig(transformer=shape, mlp=dense_as_large_as(monet, shape), training=training),
        train_monet=TrainMonetConfig(transformer=shape, monet=monet, training=training),
        train_peer=TrainPeerConfig(transformer=shape, peer=peer, training=training),
        distill_peer=DistillPeerConfig(num_experts=experts_kept, training=shorter(distill.training, distill_steps)),
        quantize_int8=QuantizeInt8Config(context_length=length),
        quantize_int4=QuantizeInt4Config(context_length=length),
        finetune_int4=FinetuneInt4Config(training=shorter(finetune.training, finetune.training.steps)),
        grow_int4=GrowInt4Config(context_length=length),
        distill_symbols=DistillSymbolsConfig(context_length=length),
        study_int4_ablation=StudyInt4AblationConfig(arm=studied(base.study_int4_ablation.arm, 4)),
        study_precision=StudyPrecisionConfig(arm=studied(base.study_precision.arm, 1)),
    )


def _compressors(training: TrainingConfig) -> CompressorsConfig:
    """Compressors primed with as many tokens as a model trains on, up to what they read in a minute."""
    tokens = training.steps * training.batch_size * training.context_length
    return CompressorsConfig(train_tokens=min(MOST_PRIMING_TOKENS, tokens), context_length=training.context_length)


def _paper(*, d_model: int, num_layers: int) -> Plan:
    """Monet's shapes (arXiv 2412.04139, table 6): n = 512, m = d / 128, H = d / 256, heads of 128, routers in fours.

    k = 8 is what released configs are believed to use; the paper does not state it.
    """
    shape = TransformerShape(
        d_model=d_model, num_layers=num_layers, num_heads=d_model // 128, num_kv_heads=d_model // 128
    )
    training = TrainingConfig(steps=47_700, batch_size=1024, context_length=2048, learning_rate=5e-4, warmup_steps=2000)
    return Plan(
        chain=("prepare-corpus", "train-dense", "train-monet"),
        prepare_corpus=PrepareCorpusConfig(
            sources=("hf:HuggingFaceFW/fineweb-edu",),
            vocab_size=32_000,
            max_bytes=10**11,
            compressors=_compressors(training),
        ),
        train_dense=TrainDenseConfig(transformer=shape, mlp=DenseSpec(d_hidden=4 * d_model), training=training),
        train_monet=TrainMonetConfig(
            transformer=shape,
            monet=MonetSpec(
                decomposition="vertical",
                num_sub_experts=512,
                d_expert=d_model // 128,
                num_heads=d_model // 256,
                active_sub_experts=8,
                router_group=4,
            ),
            training=training,
        ),
    )
