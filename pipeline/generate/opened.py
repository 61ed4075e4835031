"""A model out of a store, with the corpus and the context that its lineage says."""

from dataclasses import dataclass

from artifacts import Artifact, ArtifactError, Store
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.models import LanguageModel
from pipeline.models.trained_length import trained_length

NO_MODELS = ("corpus", "report")


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A model, and what its lineage says of it."""

    id: str
    model: LanguageModel
    corpus: Corpus
    """What it was trained on."""
    context: int
    """Tokens that it was trained to read at once."""


def open_model(id: str, store: Store) -> Opened:
    """The model of this id, or the latest one."""
    artifact = store.open(id, kind=tuple(kind for kind in codec.known_kinds() if kind not in NO_MODELS))
    model = codec.load_as(LanguageModel, artifact)
    context = trained_length(store, artifact.id)
    return Opened(id=artifact.id, model=model.eval(), corpus=_corpus_of(artifact, store), context=context)


def _corpus_of(artifact: Artifact, store: Store) -> Corpus:
    for manifest in store.ancestry(artifact.id):
        if manifest.kind == "corpus":
            return codec.load_as(Corpus, store.open(manifest.id))
    raise ArtifactError(f"{artifact.id} was made from no corpus, so its tokens cannot be read; name another model")
