"""Contents: every stage, in the order of the chain."""

from pipeline.stage import Stage
from stages import (
    distill_peer,
    distill_symbols,
    finetune_int4,
    grow_int4,
    prepare_corpus,
    quantize_int4,
    quantize_int8,
    report,
    study_int4_ablation,
    study_precision,
    train_dense,
    train_monet,
    train_peer,
)

STAGES: tuple[Stage, ...] = (
    prepare_corpus.prepare_corpus,
    train_dense.train_dense,
    train_monet.train_monet,
    train_peer.train_peer,
    distill_peer.distill_peer,
    quantize_int8.quantize_int8,
    quantize_int4.quantize_int4,
    finetune_int4.finetune_int4,
    grow_int4.grow_int4,
    distill_symbols.distill_symbols,
    report.report,
    study_int4_ablation.study_int4_ablation,
    study_precision.study_precision,
)
