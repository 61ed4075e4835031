"""Flags of the command line that make every stage take seconds."""

TRAINED = ("train-dense", "train-monet")
MEASURED = (*TRAINED, "distill-peer", "quantize-int8", "quantize-int4", "finetune-int4", "distill-symbols")


def flags(values: dict[str, object]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


SMALL: dict[str, object] = {
    "prepare-corpus.vocab-size": 300,
    "train-monet.monet.num-sub-experts": 4,
    "train-monet.monet.active-sub-experts": 2,
    "train-monet.monet.d-expert": 2,
    "distill-peer.num-experts": 20,
    "distill-peer.calibration-tokens": 1024,
    "distill-peer.sparsity.score-features": 6,
    "distill-peer.sparsity.score-terms": 3,
    "distill-peer.sparsity.u-terms": 5,
    "distill-symbols.sample-tokens": 1024,
    "distill-symbols.check-tokens": 1024,
    "distill-symbols.report-tokens": 1024,
    "distill-symbols.coordinates": 2,
    "distill-symbols.samples": 16,
    "distill-symbols.identities": 2,
    "distill-symbols.places": 2,
    "report.dots-per-inch": 50,
}
"""Of stages whatever the model's width and steps."""

SHAPES = flags(
    {
        **{f"{name}.transformer.{field}": value for name in TRAINED for field, value in (
            ("d-model", 16), ("num-layers", 2), ("num-heads", 2), ("num-kv-heads", 2))},
        **{f"{name}.training.steps": 6 for name in (*TRAINED, "distill-peer", "finetune-int4")},
        **{f"{name}.measure.tokens": 512 for name in MEASURED},
        **SMALL,
    }
)  # fmt: skip
