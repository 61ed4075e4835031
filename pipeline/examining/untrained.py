"""The same model before it learnt anything: what a test finds in it is no understanding (after arXiv 2501.17727)."""

# N tokens, D model width

from dataclasses import replace

import torch

from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows
from pipeline.models import LanguageModel
from pipeline.models.registry import kind_of
from pipeline.records.record import ActivationRecord
from pipeline.records.recording import Recording, record_activations
from pipeline.run import current_run, running
from pipeline.training.table_start import draw_tables

FITTED_ON = 4_096
"""Train tokens that thresholds are set on."""
TRIES = 3
"""Times that thresholds are set again, so that as many experts fire as in the trained model."""
ALIKE = 0.03
"""Share by which the two numbers may differ."""


def untrained_record(model: LanguageModel, corpus: Corpus, record: ActivationRecord) -> ActivationRecord:
    """A record, on the same tokens, of a model of the same spec with random weights.

    Routers that have thresholds have them set as in training, on train text, so that on average as many experts fire on
    a token as in the model's own record; what its kind fixes, as pairs a head, stays.
    """
    run = current_run()
    # A stage's own checkpoints are not those of this record.
    with running(replace(run, seed=run.stream("untrained") % 2**32, checkpoints=None)), torch.no_grad():
        twin = LanguageModel(model.spec).to(model.lm_head.weight.device).eval()
        draw_tables(twin)
        wanted, share = _fired(record), 1.0
        has_routers = _settle(twin, corpus, record, share)
        for _ in range(TRIES if has_routers else 0):
            fired = _fired(record_activations(twin, corpus, _recording(record, min(record.spec.tokens, FITTED_ON))))
            if not fired or abs(fired / wanted - 1) <= ALIKE:
                break
            share *= wanted / fired
            _settle(twin, corpus, record, share)
        return record_activations(twin, corpus, _recording(record, record.spec.tokens))


def _fired(record: ActivationRecord) -> float:
    """Mean over tokens and blocks."""
    return sum(record.of_block(block, "fired").double().mean().item() for block in range(record.blocks)) / record.blocks


def _settle(twin: LanguageModel, corpus: Corpus, record: ActivationRecord, share: float) -> bool:
    """Sets what routers keep of states, from the lowest up, to reach `share` times the pairs of their spec; false
    where there are no routers."""
    length = record.spec.context_length
    tokens_BT, _ = held_out_windows(corpus.train, num_tokens=FITTED_ON, length=length)
    settle, experts = kind_of(twin.spec.experts).settle, twin.spec.experts
    for layer, block in enumerate(twin.blocks()):
        if block.router is not None:
            x_ND = next(visit.x_ND for at, visit in enumerate(twin.walk(tokens_BT)) if at == layer)
            settle(experts, block.router, x_ND, share)
    return any(block.router is not None for block in twin.blocks())


def _recording(record: ActivationRecord, tokens: int) -> Recording:
    return Recording(
        split=record.spec.split,
        tokens=tokens,
        context_length=record.spec.context_length,
        batch_size=16,
        most=record.spec.most,
        contributions="float32",
    )
