"""Text from a trained model: python -m pipeline.generate ID --prompt TEXT."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from artifacts import (
    Artifact,
    ArtifactError,
    CommandParser,
    Store,
    as_command,
    for_stdout,
    show_every_text,
    store_folder,
    told,
    writing_to_stdout,
)
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.models import LanguageModel
from pipeline.models.trained_length import trained_length
from pipeline.run import check_seed

NO_MODELS = ("corpus", "report")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    tokens: int
    temperature: float
    top_k: int
    seed: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"--tokens: got {self.tokens}, wanted at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"--temperature: got {self.temperature}, wanted 0 (always the likeliest) or more, and finite"
            )
        if self.top_k < 1:
            raise ValueError(f"--top-k: got {self.top_k}, wanted at least 1")
        check_seed(self.seed)


@torch.no_grad()
def generate(model: nn.Module, prompt: Sequence[int], sampling: Sampling, *, context: int) -> Iterator[int]:
    """Token ids after the prompt, one by one, each sampled from the last `context` before it; a model has learnt
    nothing of more than it was trained on (`trained_length`)."""
    generator = torch.Generator().manual_seed(sampling.seed)
    ids = list(prompt)
    for _ in range(sampling.tokens):
        logits_V = model(torch.tensor([ids[-context:]]))[0, -1]
        ids.append(_sampled(logits_V, sampling, generator))
        yield ids[-1]


def _sampled(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    best, ids = logits_V.float().topk(min(sampling.top_k, len(logits_V)))
    if sampling.temperature == 0:
        return int(ids[0])
    # In doubles and from the best down: nothing overflows at any temperature.
    chances = torch.softmax((best - best[0]).double() / sampling.temperature, dim=0)
    return int(ids[torch.multinomial(chances, 1, generator=generator)])


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
    model = codec.load(artifact)
    assert isinstance(model, LanguageModel)
    context = trained_length(store, artifact.id)
    return Opened(id=artifact.id, model=model.eval(), corpus=_corpus_of(artifact, store), context=context)


def _corpus_of(artifact: Artifact, store: Store) -> Corpus:
    for manifest in store.ancestry(artifact.id):
        if manifest.kind == "corpus":
            corpus = codec.load(store.open(manifest.id))
            assert isinstance(corpus, Corpus)
            return corpus
    raise ArtifactError(f"{artifact.id} was made from no corpus, so its tokens cannot be read; name another model")


def _check_unicode(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # a byte of the command line that is no text is half a surrogate pair in it
        raise ValueError(
            f"--prompt: got {prompt[error.start]!r} as character {error.start + 1}, a lone surrogate or a byte that is "
            "no UTF-8; wanted Unicode text"
        ) from None


@as_command
def main(arguments: Sequence[str]) -> int:
    show_every_text()
    parser = CommandParser(prog="python -m pipeline.generate", description=__doc__)
    parser.add_argument("id", metavar="ID", help="the model: an id, its beginning, or 'latest'")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to go on from")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to add (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is the likeliest token (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="sample among this many (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument("--store", type=store_folder, default="store", metavar="DIR", help="default: store")
    args = parser.parse_args(arguments)
    try:
        sampling = Sampling(tokens=args.tokens, temperature=args.temperature, top_k=args.top_k, seed=args.seed)
        if not args.prompt:
            raise ValueError("--prompt: got no text, wanted at least one character")
        _check_unicode(args.prompt)
        opened = open_model(args.id, Store(args.store))
    except (ValueError, ArtifactError) as error:
        print(told(error), file=sys.stderr)
        return 2
    tokenizer, context = opened.corpus.tokenizer, opened.context
    ids = tokenizer.encode(args.prompt)
    if len(ids) + sampling.tokens - 1 > context:  # the last token is read by none
        print(
            f"{opened.id} was trained on {context} tokens of context, and the prompt's {len(ids)} with the "
            f"{sampling.tokens} to add are more: each token sees the {context} before it and no older ones",
            file=sys.stderr,
        )
    text = tokenizer.decode([*ids, *generate(opened.model, ids, sampling, context=context)])
    with writing_to_stdout():
        print(for_stdout(text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
