"""A model out of a store, with the corpus and the context that its lineage says."""

from dataclasses import dataclass

from artifacts import ArtifactError, ArtifactId, Store
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.models import LanguageModel
from pipeline.models.trained_length import trained_length


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A model in evaluation, and what its lineage says of it."""

    id: ArtifactId
    model: LanguageModel
    corpus: Corpus
    """What it was trained on."""
    context: int
    """Tokens that it was trained to read at once."""


def open_model(store: Store, id: str, kind: str | None = None) -> Opened:
    """The model of this id, or the latest one; of this kind, or of any. ArtifactError where there is none."""
    store.require_folder()
    artifact = store.open(id, kind=kind or codec.kinds_of(LanguageModel))
    model = codec.load_as(LanguageModel, artifact).eval()
    corpus_id = next((made.id for made in store.ancestry(artifact.id) if made.kind == "corpus"), None)
    if corpus_id is None:
        raise ArtifactError(f"{artifact.id} was made from no corpus, so its tokens cannot be read; name another model")
    corpus = codec.load_as(Corpus, store.open(corpus_id))
    return Opened(id=artifact.id, model=model, corpus=corpus, context=trained_length(store, artifact.id))
