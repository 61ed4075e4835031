"""Plans of several sizes. A preset is a function that returns a plan, and its docstring says what it takes."""

import math
from collections.abc import Callable, Mapping

from kernels.errors import Mistake
from pipeline.measuring.compressors import MOST_PRIMING_TOKENS, CompressorsConfig
from pipeline.measuring.held_out import MeasureConfig
from pipeline.models.dense import DenseSpec
from pipeline.models.equal_size import dense_as_large_as
from pipeline.models.monet import MonetSpec
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.transformer import TransformerShape
from pipeline.studies.variants import ArmConfig
from pipeline.training.config import TrainingConfig
from stages.distill_peer import DistillPeerConfig
from stages.distill_symbols import DistillSymbolsConfig
from stages.errors import unknown
from stages.finetune_int4 import FinetuneInt4Config
from stages.grow_int4 import GrowInt4Config
from stages.plan import Plan
from stages.prepare_corpus import PrepareCorpusConfig
from stages.quantize_int4 import QuantizeInt4Config
from stages.quantize_int8 import QuantizeInt8Config
from stages.record_activations import RecordActivationsConfig
from stages.study_int4_ablation import StudyInt4AblationConfig
from stages.study_precision import StudyPrecisionConfig
from stages.train_dense import TrainDenseConfig
from stages.train_monet import TrainMonetConfig
from stages.train_peer import TrainPeerConfig


def tiny() -> Plan:
    """Width 128, 1.5M tokens, 4,096 experts a block: 2 cores, 10 min."""
    return Plan()


def smoke() -> Plan:
    """Width 64, 0.3M tokens, 512 experts a block: 2 cores, 90 seconds."""
    base, training = Plan(), TrainingConfig(steps=300, learning_rate=6e-3, warmup_steps=30)
    shape = TransformerShape(d_model=64, num_layers=2, num_heads=2, num_kv_heads=2)
    monet = MonetSpec(num_sub_experts=16, d_expert=8)
    measure = MeasureConfig(tokens=16_384)

    def shorter(config: TrainingConfig, steps: int) -> TrainingConfig:
        return TrainingConfig.model_validate({**config.model_dump(), "steps": steps})

    distill, finetune = base.distill_peer, base.finetune_int4
    return Plan(
        prepare_corpus=PrepareCorpusConfig(
            max_bytes=8_000_000,
            tokenizer_sample_bytes=2_000_000,
            compressors=_compressors(training).model_copy(update={"tokens": measure.tokens}),
        ),
        train_dense=TrainDenseConfig(
            transformer=shape, mlp=dense_as_large_as(monet, shape), training=training, measure=measure
        ),
        train_monet=TrainMonetConfig(transformer=shape, monet=monet, training=training, measure=measure),
        train_peer=TrainPeerConfig(
            transformer=shape,
            peer=PeerSpec(sub_keys="shared", num_keys=22, num_experts=22 * 22),
            training=training,
            measure=measure,
        ),
        distill_peer=DistillPeerConfig(
            num_experts=512,
            calibration_tokens=8192,
            sparsity=distill.sparsity.model_copy(update={"score_features": 32}),
            training=shorter(distill.training, 64),
            measure=measure,
        ),
        quantize_int8=QuantizeInt8Config(measure=measure),
        quantize_int4=QuantizeInt4Config(measure=measure),
        finetune_int4=FinetuneInt4Config(training=shorter(finetune.training, 40), measure=measure),
        grow_int4=GrowInt4Config(measure=measure),
        distill_symbols=DistillSymbolsConfig(
            sample_tokens=8192, check_tokens=8192, report_tokens=8192, kan_experts=1, measure=measure
        ),
    )


def small() -> Plan:
    """Width 256, 4M tokens, 16,384 experts a block: 2 cores, an hour."""
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
    """Width 768, 131M tokens, 1,048,576 experts a block: one GPU."""
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
    """Bytes of one text: dense, Monet and PEER, 2000 steps each."""
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
    """The paper's Monet 850M, 100B tokens of FineWeb-Edu: a cluster."""
    return _paper(d_model=1536, num_layers=24)


def monet_1_4b() -> Plan:
    """The paper's Monet 1.4B, 100B tokens of FineWeb-Edu: a cluster."""
    return _paper(d_model=2048, num_layers=24)


def monet_4_1b() -> Plan:
    """The paper's Monet 4.1B, 100B tokens of FineWeb-Edu: a cluster."""
    return _paper(d_model=3072, num_layers=32)


PRESETS: Mapping[str, Callable[[], Plan]] = {
    preset.__name__: preset for preset in (smoke, tiny, small, gpu, shakespeare, monet_850m, monet_1_4b, monet_4_1b)
}
DEFAULT = tiny.__name__


def preset_of(name: str) -> Plan:
    """The plan of this name; ValueError names the presets there are."""
    if name not in PRESETS:
        raise Mistake(unknown("preset", name, PRESETS))
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
        train_peer=TrainPeerConfig(
            transformer=shape, peer=peer.model_copy(update={"sub_keys": "shared"}), training=training
        ),
        distill_peer=DistillPeerConfig(num_experts=experts_kept, training=shorter(distill.training, distill_steps)),
        quantize_int8=QuantizeInt8Config(context_length=length),
        quantize_int4=QuantizeInt4Config(context_length=length),
        finetune_int4=FinetuneInt4Config(training=shorter(finetune.training, finetune.training.steps)),
        grow_int4=GrowInt4Config(context_length=length),
        distill_symbols=DistillSymbolsConfig(context_length=length),
        record_activations=RecordActivationsConfig(context_length=length),
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
