"""Runs a model over text and writes down, batch by batch, which experts fired and what they contributed."""

# B windows, T tokens a window, N tokens, K experts kept a token, E experts of a block

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus, Split
from pipeline.corpus.windows import target_positions
from pipeline.measuring.loss import token_losses
from pipeline.models.language_model import LanguageModel
from pipeline.models.registry import kind_of
from pipeline.models.transformer import Visit
from pipeline.records.appended import Column, appended
from pipeline.records.record import (
    SPLITS,
    ActivationRecord,
    Contributions,
    RecordSpec,
    columns_of_blocks,
    digest_of_model,
    digest_of_tokenizer,
)
from pipeline.records.strongest import strongest
from pipeline.run import current_run, say, steps

_TOKENS_A_BLOCK = 2**16
"""After so many what was written is brought down to the disk: all that a kill costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What is recorded, and how much of it is kept."""

    split: SPLITS
    tokens: int
    """At most; in windows spread evenly over the split."""
    context_length: int
    batch_size: int
    """Windows a forward pass."""
    most: int
    contributions: Contributions


@torch.no_grad()
def record_activations(model: LanguageModel, corpus: Corpus, recording: Recording) -> ActivationRecord:
    """ValueError for a model of another vocabulary, and for text that holds no window."""
    check_speaks_as(model, corpus)
    split: Split = getattr(corpus, recording.split)
    position_WT = target_positions(split, num_tokens=recording.tokens, length=recording.context_length)
    losses, written = _written(model, split, position_WT, recording)
    of_tokens, domains = _text(corpus, split, position_WT.flatten())
    spec = RecordSpec(
        split=recording.split,
        tokens=position_WT.numel(),
        context_length=recording.context_length,
        most=recording.most,
        contributions=recording.contributions,
        experts=tuple(block.experts.num_experts for block in model.blocks()),
        domains=domains,
        vocab_size=corpus.spec.vocab_size,
        tokenizer_sha256=digest_of_tokenizer(corpus),
        model_kind=model.kind,
        model_sha256=digest_of_model(model),
    )
    return ActivationRecord(spec, {**of_tokens, "loss_nats": losses, **written, **_cells(model)})


def check_speaks_as(model: LanguageModel, corpus: Corpus) -> None:
    """ValueError for a model that reads other tokens than the corpus has, as far as their number says."""
    if model.shape.vocab_size != corpus.spec.vocab_size:
        raise Mistake(
            f"the model reads {model.shape.vocab_size:,} tokens and the corpus has a tokenizer of "
            f"{corpus.spec.vocab_size:,}; name the corpus that the model was made from"
        )


def _written(
    model: LanguageModel, split: Split, position_WT: Tensor, recording: Recording
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses, and what each block's experts did. Goes on from the last block of batches that was written."""
    columns = {"loss_nats": Column(torch.float32)}
    columns |= columns_of_blocks(len(model.blocks()), recording.most, recording.contributions)
    rows_a_batch = recording.batch_size * recording.context_length
    batches = math.ceil(len(position_WT) / recording.batch_size)
    batches_a_block = max(1, _TOKENS_A_BLOCK // rows_a_batch)
    with appended(current_run().checkpoints, columns) as table:
        first = math.ceil(table.rows / rows_a_batch)
        for batch in steps("record activations", batches, first=first):
            position_BT = position_WT[batch * recording.batch_size :][: recording.batch_size]
            table.append(batch_columns(model, split, position_BT, recording))
            if (batch + 1) % batches_a_block == 0 or batch + 1 == batches:
                table.seal()
        found = table.tensors()
    return found.pop("loss_nats"), found


def batch_columns(model: LanguageModel, split: Split, target_BT: Tensor, recording: Recording) -> dict[str, Tensor]:
    """The rows of one batch: a row is a token that is read, its loss that of the token at the target's position."""
    device, found = model.lm_head.weight.device, {}
    inputs_BT, visit = split.tokens_at(target_BT - 1).to(device), None
    for block, visit in enumerate(model.walk(inputs_BT)):
        found |= {f"layers.{block}.{name}": values for name, values in _block_columns(visit, block, recording).items()}
    assert visit is not None
    targets_BT = split.tokens_at(target_BT).to(device)
    return {"loss_nats": token_losses(model.logits(visit.stream_BTD), targets_BT).flatten(), **found}


def _block_columns(visit: Visit, block: int, recording: Recording) -> dict[str, Tensor]:
    try:
        kept = strongest(visit.pairs(), tokens=len(visit.x_ND), experts=visit.experts.num_experts, most=recording.most)
    except ValueError as error:
        raise Mistake(f"in block {block}, {error}") from None
    largest = torch.finfo(getattr(torch, recording.contributions)).max
    if (greatest := kept.contribution_TK.max().item()) > largest:
        raise Mistake(
            f"in block {block} an expert contributes {greatest:.4g}, and {recording.contributions} holds at most "
            f"{largest:.4g}; record with contributions of float32"
        )
    return {
        "expert": kept.expert_TK,
        "contribution": kept.contribution_TK,
        "fired": kept.fired_T,
        "omitted_share": kept.omitted_share_T,
    }


def _text(corpus: Corpus, split: Split, target_N: Tensor) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What stands where, and the domains that have text there, in their order in the corpus."""
    at_N = target_N - 1
    document_N = split.document_of(at_N)
    present, domain_N = torch.unique(split.document_domain_D[document_N].long(), return_inverse=True)
    named = tuple(corpus.spec.domains[domain] for domain in present.tolist())
    for name in corpus.spec.domains:
        if name not in named:
            say(f"no token that is recorded is of the domain {name!r}")
    found = {
        "token": split.tokens_at(at_N),
        "label": split.tokens_at(target_N),
        "document": document_N,
        "position": at_N - split.document_start_D[document_N],
        "domain": domain_N,
    }
    return {name: values.to(torch.int32) for name, values in found.items()}, named


def _cells(model: LanguageModel) -> dict[str, Tensor]:
    """Where the experts of a block are in a key grid, if they are in one."""
    cells_of = kind_of(model.spec.experts).cells
    cells = {f"layers.{number}.cell": cells_of(block.experts) for number, block in enumerate(model.blocks())}
    return {name: cell_E2.to("cpu", torch.int32) for name, cell_E2 in cells.items() if cell_E2 is not None}
