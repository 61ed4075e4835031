"""One tiny artifact of every kind, for mutations."""

from collections.abc import Callable
from pathlib import Path

from artifacts import Recipe, Store
from pipeline.codec import Persistent
from pipeline.corpus.splits import Corpus, CorpusSpec, make_split
from pipeline.corpus.tokenizer import BpeTokenizer
from pipeline.report import Report, ReportSpec, Row
from tests.circumstance import CIRCUMSTANCE
from tests.tiny import EVERY_KIND, INT4, JUMP, TEXT, tiny_corpus, tiny_model
from tests.tiny_symbols import symbols_model

_GRID = INT4.model_copy(update={"aspect": 2, "scale_groups": 2})
_SPARSE = JUMP.model_copy(
    update={
        "sub_keys": "identity",
        "d_key": 5,
        "query_norm": False,
        "score_features": 7,
        "score_terms": 3,
        "u_terms": 5,
    }
)


def _bpe_corpus() -> Corpus:
    tokenizer = BpeTokenizer.train([TEXT], vocab_size=270)
    split = make_split([(0, TEXT * 9), (1, ""), (1, TEXT)], tokenizer)
    spec = CorpusSpec(tokenizer="bpe", vocab_size=270, domains=("farm", "barn"))
    return Corpus(spec, train=split, validation=split, held_out=split, tokenizer=tokenizer)


def _report() -> Report:
    row = Row(name="int4", id="quantize-int4-0123456789ab", kind="peer-int4", seconds=1.5, metrics={"loss": 2.5})
    return Report(ReportSpec(rows=(row,)), {"report.html": b"<p>words</p>"})


SPECIMENS: dict[str, Callable[[], Persistent]] = {
    **{name: lambda spec=spec: tiny_model(spec) for name, spec in EVERY_KIND.items()},
    "int4-grid": lambda: tiny_model(_GRID),
    "peer-sparse": lambda: tiny_model(_SPARSE),
    "symbols": symbols_model,
    "symbols-softmax": lambda: symbols_model(gate="softmax", axis_bias=False),
    "corpus-bytes": lambda: tiny_corpus(20),
    "corpus-bpe": _bpe_corpus,
    "report": _report,
}


def published(name: str, store: Store) -> Path:
    """The folder of this specimen, with a config, metrics and an input as stages leave them."""
    value = SPECIMENS[name]()
    made = {"config": {"training": {"steps": 3, "rates": [0.1, 0.2]}, "name": name}, "seed": 0}
    corpus = store.publish(
        recipe=Recipe(stage="prepare-corpus", stage_version=1, inputs={}, sources_sha256="0" * 64, **made),
        kind="corpus", spec={}, tensors={}, metrics={}, files={}, circumstance=CIRCUMSTANCE,
    )  # fmt: skip
    id = store.publish(
        recipe=Recipe(stage=f"make-{value.kind}", stage_version=1, inputs={"corpus": corpus}, **made),
        kind=value.kind,
        spec=value.spec.model_dump(mode="json"),
        tensors=value.to_tensors(),
        metrics={"held_out_loss_nats": 2.5, "num_parameters": 1234.0},
        files=value.to_files(),
        circumstance=CIRCUMSTANCE,
    )
    return store.root / id
