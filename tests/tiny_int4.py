"""A tiny Monet trained for a few steps, so that its experts are worth something, as a pruned int4 PEER."""

import torch

from pipeline.corpus.splits import Corpus, CorpusSpec, Split, make_split
from pipeline.corpus.tokenizer import ByteTokenizer
from pipeline.corpus.windows import random_windows
from pipeline.measuring.held_out import MeasureConfig
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.monet import MonetSpec
from pipeline.models.peer.gates import threshold_for
from pipeline.models.peer.router import PeerRouter
from pipeline.models.transformer import TransformerSpec
from pipeline.transforms.from_monet import keep_experts, peer_from_monet
from pipeline.transforms.precision import to_int4
from pipeline.transforms.sparsity import Sparsity, sparsified
from stages.distill_symbols import DistillSymbolsConfig

EXPERTS, LAYERS = 61, 2
WORDS = ["sum", "gate", "token", "x_1", "=", "(a + b)", "27", "Expert", "\n"]


def words_split(words: int, generator: torch.Generator) -> Split:
    text = " ".join(WORDS[i] for i in torch.randint(len(WORDS), (words,), generator=generator).tolist())
    return make_split([(0, text)], ByteTokenizer())


def words_corpus() -> Corpus:
    generator = torch.Generator().manual_seed(0)
    spec = CorpusSpec(tokenizer="bytes", vocab_size=256, domains=("words",))
    train, validation, held_out = (words_split(words, generator) for words in (1200, 150, 150))
    return Corpus(spec, train=train, validation=validation, held_out=held_out, tokenizer=ByteTokenizer())


def trained_int4(corpus: Corpus, router_group: int = 2) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        shape = TransformerSpec(d_model=16, num_layers=LAYERS, num_heads=2, num_kv_heads=2, vocab_size=256)
        experts = MonetSpec(num_sub_experts=6, d_expert=2, num_heads=2, active_sub_experts=2, router_group=router_group)
        monet = LanguageModel(ModelSpec(transformer=shape, experts=experts)).train()
        generator = torch.Generator().manual_seed(2)
        optimizer = torch.optim.AdamW(monet.parameters(), lr=1e-2)
        for _ in range(40):
            inputs_BT, targets_BT = random_windows(corpus.train, batch=8, length=32, generator=generator)
            loss = torch.nn.functional.cross_entropy(monet(inputs_BT).flatten(0, 1), targets_BT.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        peer = peer_from_monet(monet.eval(), pairs_per_head=3)
        trace = peer.trace(random_windows(corpus.train, batch=16, length=32, generator=generator)[0])
        for block, routing in zip(peer.blocks(), trace.routings, strict=True):
            if isinstance(block.router, PeerRouter):
                block.router.threshold_H.copy_(threshold_for(routing.log_gate1_NHI, routing.log_gate2_NHJ, 3))
        return to_int4(keep_experts(peer, [torch.arange(EXPERTS)] * LAYERS), clips=3)


def sparse_int4(corpus: Corpus, int4: LanguageModel) -> LanguageModel:
    """Made sparse, untrained."""
    generator = torch.Generator().manual_seed(8)
    batches = [random_windows(corpus.train, batch=16, length=32, generator=generator)[0]]
    return sparsified(int4, batches, Sparsity(score_features=8, score_terms=3, u_terms=5))


def config(**changes) -> DistillSymbolsConfig:
    """Of distill-symbols on this model, in seconds."""
    smaller = {
        "sample_tokens": 2048, "check_tokens": 2048, "context_length": 32, "coordinates": (1, 2, 4),
        "samples": 96, "kan_experts": 2, "places": 2, "identities": 8, "measure": MeasureConfig(tokens=512),
    }  # fmt: skip
    return DistillSymbolsConfig(**{**smaller, **changes})
