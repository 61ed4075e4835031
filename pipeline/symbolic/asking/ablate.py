"""What some experts of a layer are worth: held-out loss without them, beside random sets that write as much."""

# B windows, T tokens of one, N tokens of the sample, E experts of the layer, V vocabulary, D documents

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import stdtrit
from torch import Tensor
from torch.nn import functional as F

from kernels.errors import Mistake
from pipeline.corpus.splits import Split
from pipeline.corpus.visible import bytes_of, parted, quoted
from pipeline.corpus.windows import target_positions
from pipeline.measuring.loss import token_losses
from pipeline.models.ablation import ablated
from pipeline.models.language_model import LanguageModel
from pipeline.opening import Opened
from pipeline.symbolic.asking.words import check_layer

SAMPLE_TOKENS = 16_384
WINDOWS_A_PASS = 16
CONTROLS = 5
"""Random sets of experts that the ablation is compared with."""
NEAR = 0.05
"""By how much, as a share, the output of such a set may differ from that of the experts, where one is found."""
WORST = 5
TOKENS_NAMED = 5
TOKENS_BEFORE = 12
CONTINUED = 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hurt(_Part):
    increase_nats: float = Field(description="By how much the loss of this one token grows.")
    before: str
    token: str = Field(description="That the model has to predict.")


class Shift(_Part):
    token: str
    change: float = Field(description="Of its probability, mean over the tokens on which the experts add anything.")


class Control(_Part):
    experts: int
    output: float = Field(description="Of its experts, over that of those asked for: sums of the lengths they add.")
    fires_on: int = Field(description="Tokens on which any of them adds anything.")
    increase_nats: float


class Continued(_Part):
    prompt: str
    whole: str = Field(description="What the model goes on with, always the likeliest token.")
    ablated: str = Field(description="The same without the experts.")


class Worth(_Part):
    """What a model loses without some experts."""

    model: str
    layer: int
    experts: tuple[int, ...]
    sample_tokens: int
    documents: int
    fires_on: int = Field(description="Tokens on which any of them adds anything.")
    loss_nats: float = Field(description="Of the whole model.")
    increase_nats: float
    increase_half_width_nats: float | None = Field(
        description="Of its nominal 95 % interval, documents taken as independent; none of a single document. It holds "
        "the mean less often where few documents carry the increase."
    )
    increase_where_it_fires_nats: float | None
    increase_elsewhere_nats: float | None
    controls: tuple[Control, ...] = Field(
        description="Random sets of other experts of the layer that add as much in all, on whichever tokens they fire."
    )
    hurts_most: tuple[Hurt, ...] = Field(description="Each of another document.")
    falls: tuple[Shift, ...]
    rises: tuple[Shift, ...]
    continued: Continued


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    split: Split
    position_WT: Tensor
    """Of the tokens that are predicted."""

    @classmethod
    def of(cls, opened: Opened, tokens: int) -> "_Sample":
        split = opened.corpus.held_out
        length = min(opened.context, split.num_tokens - 1)
        return cls(split=split, position_WT=target_positions(split, num_tokens=tokens, length=length))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, T) inputs and targets."""
        for position_BT in self.position_WT.split(WINDOWS_A_PASS):
            yield self.split.tokens_at(position_BT - 1), self.split.tokens_at(position_BT)


@torch.no_grad()
def worth(opened: Opened, layer: int, experts: Sequence[int], *, tokens: int, prompt: str | None) -> Worth:
    """ValueError for an expert or a layer that is not there, and for experts that add nothing on the sample."""
    model, chosen = opened.model, sorted(set(experts))
    _check(model, layer, chosen)
    sample = _Sample.of(opened, tokens)
    output_E, fires_N, whole_N, without_N, shift_V = _compared(model, layer, chosen, sample)
    increase_N, document_N = without_N - whole_N, sample.split.document_of(sample.position_WT).flatten()
    mean, half_width, documents = clustered(increase_N, document_N)
    worst = _worst(opened, sample, increase_N, document_N)
    asked = opened.corpus.tokenizer.decode(_before_worst(sample, increase_N)) if prompt is None else prompt
    return Worth(
        model=opened.id,
        layer=layer,
        experts=tuple(chosen),
        sample_tokens=len(increase_N),
        documents=documents,
        fires_on=int(fires_N.sum()),
        loss_nats=float(whole_N.mean()),
        increase_nats=mean,
        increase_half_width_nats=half_width,
        increase_where_it_fires_nats=_mean(increase_N[fires_N]),
        increase_elsewhere_nats=_mean(increase_N[~fires_N]),
        controls=tuple(_controls(model, layer, chosen, output_E, sample, float(whole_N.mean()))),
        hurts_most=tuple(_hurt(opened, sample, increase_N, at) for at in worst),
        falls=_shifts(opened, shift_V, largest=False),
        rises=_shifts(opened, shift_V, largest=True),
        continued=_continued(opened, layer, chosen, asked),
    )


def clustered(value_N: Tensor, document_N: Tensor) -> tuple[float, float | None, int]:
    """Mean, half width of its nominal 95 % interval, and how many documents there are, taken as independent."""
    _, at_N = torch.unique(document_N, return_inverse=True)
    documents, mean = int(at_N.max()) + 1, float(value_N.mean())
    if documents == 1:
        return mean, None, 1
    off_D = torch.zeros(documents, dtype=value_N.dtype).index_add(0, at_N, value_N - mean)
    error = math.sqrt(float(off_D.square().sum()) * documents / (documents - 1)) / len(value_N)
    return mean, float(stdtrit(documents - 1, 0.975)) * error, documents


def random_set(output_E: Tensor, chosen: Sequence[int], generator: torch.Generator) -> list[int]:
    """Other experts in random order, each taken where the sum of outputs stays below that of the chosen and NEAR."""
    wanted = float(output_E[list(chosen)].sum())
    total, found = 0.0, list[int]()
    for expert in torch.randperm(len(output_E), generator=generator).tolist():
        output = float(output_E[expert])
        if expert not in chosen and 0 < output <= wanted * (1 + NEAR) - total:
            found.append(expert)
            total += output
        if total >= wanted * (1 - NEAR):
            break
    return found


def _check(model: LanguageModel, layer: int, experts: Sequence[int]) -> None:
    check_layer(model, layer)
    number = model.blocks()[layer].experts.num_experts
    for expert in experts:
        if not 0 <= expert < number:
            raise Mistake(f"expert {expert} is not in layer {layer}, which has the experts 0 to {number - 1}")


def _compared(
    model: LanguageModel, layer: int, chosen: Sequence[int], sample: _Sample
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(E) what each expert of the layer adds in all, (N) whether the chosen fire, losses with and without them in
    float64, and (V) by how much probabilities change where they fire."""
    number = model.blocks()[layer].experts.num_experts
    output_E = torch.zeros(number, dtype=torch.float64)
    is_chosen_E = torch.zeros(number, dtype=torch.bool)
    is_chosen_E[list(chosen)] = True
    shift_V = torch.zeros(model.shape.vocab_size, dtype=torch.float64)
    fires, whole, without = list[Tensor](), list[Tensor](), list[Tensor]()
    for inputs_BT, targets_BT in sample.batches():
        logits_BTV, expert_P, token_P, norm_P = _walked(model, layer, inputs_BT)
        output_E.index_add_(0, expert_P, norm_P)
        fires_N = torch.zeros(inputs_BT.numel(), dtype=torch.bool)
        fires_N[token_P[is_chosen_E[expert_P] & (norm_P > 0)]] = True
        with ablated(model, {layer: list(chosen)}):
            other_BTV = model(inputs_BT)
        change_NV = (F.softmax(other_BTV.float(), -1) - F.softmax(logits_BTV.float(), -1)).flatten(0, 1)
        shift_V += change_NV[fires_N].double().sum(0)
        fires.append(fires_N)
        whole.append(token_losses(logits_BTV, targets_BT).flatten().double())
        without.append(token_losses(other_BTV, targets_BT).flatten().double())
    fires_N = torch.cat(fires)
    if not fires_N.any():
        raise Mistake(
            f"layer {layer}, {_named(chosen)}: nothing is added on {len(fires_N):,} held-out tokens, so that nothing "
            "changes without it; name another expert, or count on more text with --tokens"
        )
    return output_E, fires_N, torch.cat(whole), torch.cat(without), shift_V / int(fires_N.sum())


def _named(experts: Sequence[int]) -> str:
    return f"expert{'s' if len(experts) > 1 else ''} {', '.join(map(str, experts))}"


def _walked(model: LanguageModel, layer: int, inputs_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, and experts, tokens and lengths of the pairs of the layer."""
    pairs = visit = None
    for block, visit in enumerate(model.walk(inputs_BT)):
        if block == layer:
            pairs = visit.pairs()
    assert pairs is not None
    assert visit is not None
    return model.logits(visit.stream_BTD), pairs.expert_P, pairs.token_P, pairs.norm_P.double()


def _controls(
    model: LanguageModel, layer: int, chosen: Sequence[int], output_E: Tensor, sample: _Sample, loss: float
) -> Iterator[Control]:
    """Fewer where no other expert is so small."""
    generator = torch.Generator().manual_seed(0)
    wanted = float(output_E[list(chosen)].sum())
    for _ in range(CONTROLS):
        others = random_set(output_E, chosen, generator)
        if not others:
            continue
        losses, fires_on = [], 0
        with ablated(model, {layer: others}):
            for inputs_BT, targets_BT in sample.batches():
                logits_BTV, expert_P, token_P, norm_P = _walked(model, layer, inputs_BT)
                losses.append(token_losses(logits_BTV, targets_BT).flatten().double())
                adds_P = torch.isin(expert_P, torch.tensor(others)) & (norm_P > 0)
                fires_on += len(token_P[adds_P].unique())
        yield Control(
            experts=len(others),
            output=float(output_E[others].sum()) / wanted,
            fires_on=fires_on,
            increase_nats=float(torch.cat(losses).mean()) - loss,
        )


def _mean(value_N: Tensor) -> float | None:
    return float(value_N.mean()) if len(value_N) else None


def _worst(opened: Opened, sample: _Sample, increase_N: Tensor, document_N: Tensor) -> list[int]:
    """Places of the tokens whose loss grows most, each of another document."""
    found: dict[int, int] = {}
    for at in torch.argsort(increase_N, descending=True, stable=True).tolist():
        found.setdefault(int(document_N[at]), at)
        if len(found) == WORST:
            break
    return list(found.values())


def _before(sample: _Sample, at: int) -> list[int]:
    """The tokens of the window and the document before the one at this place of the sample."""
    window, place = divmod(at, sample.position_WT.shape[1])
    position_T = sample.position_WT[window, : place + 1]
    of_document = sample.split.document_of(position_T - 1) == sample.split.document_of(position_T[-1:])
    return sample.split.tokens_at(position_T[of_document] - 1)[-TOKENS_BEFORE:].tolist()


def _before_worst(sample: _Sample, increase_N: Tensor) -> list[int]:
    """The tokens before the one whose loss grows most, of those that do not begin a document."""
    document_N, before_N = (sample.split.document_of(sample.position_WT - back).flatten() for back in (0, 1))
    return _before(sample, int(increase_N.masked_fill(document_N != before_N, -math.inf).argmax()))


def _hurt(opened: Opened, sample: _Sample, increase_N: Tensor, at: int) -> Hurt:
    token_bytes = opened.corpus.tokenizer.token_bytes
    target = int(sample.split.tokens_at(sample.position_WT.flatten()[at : at + 1]))
    before, token = parted(bytes_of(token_bytes, _before(sample, at)), token_bytes[target])
    return Hurt(increase_nats=float(increase_N[at]), before=before, token=token)


def _shifts(opened: Opened, shift_V: Tensor, *, largest: bool) -> tuple[Shift, ...]:
    best = shift_V.topk(min(TOKENS_NAMED, len(shift_V)), largest=largest)
    return tuple(
        Shift(token=quoted(opened.corpus.tokenizer.token_bytes[token]), change=change)
        for token, change in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if (change > 0) == largest
    )


def _continued(opened: Opened, layer: int, chosen: Sequence[int], prompt: str) -> Continued:
    tokenizer = opened.corpus.tokenizer
    ids = tokenizer.encode(prompt)
    if not ids:
        raise Mistake("--prompt: got no text, wanted at least one character")
    whole = _likeliest(opened, ids)
    with ablated(opened.model, {layer: list(chosen)}):
        without = _likeliest(opened, ids)
    shown = [quoted(bytes_of(tokenizer.token_bytes, tokens)) for tokens in (ids, whole, without)]
    return Continued(prompt=shown[0], whole=shown[1], ablated=shown[2])


def _likeliest(opened: Opened, prompt: Sequence[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(CONTINUED):
        ids.append(int(opened.model(torch.tensor([ids[-opened.context :]]))[0, -1].argmax()))
    return ids[len(prompt) :]
