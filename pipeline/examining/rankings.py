"""Does what is seen of an expert foretell what it does? Rankings from a record beside the effect of leaving it out.

After arXiv 2606.10703, which finds no observational metric of a mixture of experts that does.
"""

# T tokens, E experts, F those that fired, X a sample of them, R rows (windows) of a record, L tokens a row, B rows of
# a batch

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from pipeline.examining.battery import Examination
from pipeline.measuring.loss import token_losses
from pipeline.models import LanguageModel
from pipeline.models.ablation import Places, ablated
from pipeline.records.record import ActivationRecord
from pipeline.run import steps

RANKINGS: Mapping[str, str] = {
    "mass": "sum of contributions",
    "frequency": "tokens it fires on",
    "energy": "sum of squared contributions",
    "partners": "experts it is co-active with beyond chance",
    "lift": "mean logarithm of their lifts",
}
EFFECTS: Mapping[str, str] = {
    "everywhere": "loss increase over all tokens",
    "where_it_fires": "loss increase on the tokens where it fires",
    "change": "absolute change of the loss, mean over all tokens",
}
HALVES = "halves"
"""In place of a ranking: an effect in one half of the windows beside itself in the other."""
ROWS_A_BATCH = 32
PERMUTATIONS = 1_000
LEAST_EXPERTS = 10
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effects:
    """Of leaving out single experts of one block, nats a token."""

    expert_X: NDArray[np.int64]
    everywhere_X: Floats
    where_it_fires_X: Floats
    change_X: Floats
    halves: Mapping[str, tuple[Floats, Floats]]
    """Of those with two windows at least, each effect in one half of its windows and in the other: what is not the same
    in both cannot be foretold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """Spearman's, over sampled experts, with its 95 % interval."""

    rho: float
    low: float
    high: float
    null: float
    """What 95 % of permutations stay within, about 0."""
    experts: int


@torch.no_grad()
def effects_of_ablation(
    model: LanguageModel, record: ActivationRecord, block: int, *, experts: int, rows: int, rng: np.random.Generator
) -> Effects:
    """Of a random sample of experts that fire, each left out alone, all else free to change.

    An expert is measured on up to `rows` random windows in which the record has it; in the others nothing is taken to
    change, though an expert that is not among those recorded of a token acts there.
    """
    length, expert_TK = record.spec.context_length, record.of_block(block, "expert").numpy()
    token_RL = record.tensors["token"].view(-1, length)
    label_RL, loss_RL = (record.tensors[name].view(-1, length) for name in ("label", "loss_nats"))
    row_N, expert_N = _where(expert_TK, length)
    fired, start_F = np.unique(expert_N, return_index=True)
    chosen_X = np.sort(rng.choice(len(fired), min(experts, len(fired)), replace=False))
    rows_of = np.split(row_N, start_F[1:])
    jobs = [
        (place, turn % 2, int(row))
        for place, number in enumerate(chosen_X)
        for turn, row in enumerate(rng.choice(rows_of[number], min(rows, len(rows_of[number])), replace=False))
    ]
    # Of each expert and half of its windows: sums of the effects, tokens on which it fires, windows.
    sums = {name: np.zeros((2, len(chosen_X))) for name in (*EFFECTS, "fires", "rows")}
    device, expert_RLK = model.lm_head.weight.device, expert_TK.reshape(-1, length, expert_TK.shape[1])
    for batch in steps(f"leave out experts of block {block}", math.ceil(len(jobs) / ROWS_A_BATCH)):
        some = jobs[batch * ROWS_A_BATCH :][:ROWS_A_BATCH]
        place_B, half_B, row_B = (torch.tensor(of) for of in zip(*some, strict=True))
        left_out_B = torch.from_numpy(fired[chosen_X])[place_B]
        places = Places(tokens=torch.arange(len(some) * length), experts=left_out_B.repeat_interleave(length))
        with ablated(model, {block: places}):
            logits_BLV = model(token_RL[row_B].long().to(device))
        losses_BL = token_losses(logits_BLV, label_RL[row_B].long().to(device)).cpu()
        increase_BL = (losses_BL - loss_RL[row_B]).double().numpy()
        fires_BL = (expert_RLK[row_B.numpy()] == left_out_B.numpy()[:, None, None]).any(2)
        for name, values_BL in (
            ("everywhere", increase_BL), ("where_it_fires", increase_BL * fires_BL), ("change", np.abs(increase_BL)),
            ("fires", fires_BL), ("rows", np.ones((len(some), 1))),
        ):  # fmt: skip
            np.add.at(sums[name], (half_B.numpy(), place_B.numpy()), values_BL.sum(1))
    share_X = np.array([len(rows_of[number]) for number in chosen_X]) / len(token_RL) / length

    def effects(of: NDArray[np.int64]) -> dict[str, Floats]:
        """By these halves together."""
        total = {name: values[of].sum(0) for name, values in sums.items()}
        over_all_X = share_X / np.maximum(total["rows"], 1)
        where_X = total["where_it_fires"] / np.maximum(total["fires"], 1)
        return {
            "everywhere": total["everywhere"] * over_all_X, "where_it_fires": where_X,
            "change": total["change"] * over_all_X,
        }  # fmt: skip

    whole, one, other = (effects(np.array(of)) for of in ([0, 1], [0], [1]))
    twice_X = sums["rows"][1] > 0
    return Effects(
        expert_X=fired[chosen_X].astype(np.int64),
        everywhere_X=whole["everywhere"],
        where_it_fires_X=whole["where_it_fires"],
        change_X=whole["change"],
        halves={name: (one[name][twice_X], other[name][twice_X]) for name in EFFECTS},
    )


def rankings_of(record: ActivationRecord, block: int, found: Examination) -> dict[str, Floats]:
    """(E) by the names in RANKINGS."""
    expert_TK = record.of_block(block, "expert").numpy()
    fires_TK = expert_TK >= 0
    expert_N = expert_TK[fires_TK]
    contribution_N = record.of_block(block, "contribution").float().numpy()[fires_TK].astype(np.float64)
    experts = record.spec.experts[block]
    significant, name_F = found.significant, found.firings.name_F
    both = np.concatenate([name_F[significant.pairs.first_C], name_F[significant.pairs.second_C]])
    lift = np.tile(np.log(significant.lift_C), 2)

    def summed(expert_N: NDArray[np.integer], weight_N: Floats) -> Floats:
        return np.bincount(expert_N, weight_N, minlength=experts).astype(np.float64)

    partners_E = summed(both, np.ones(len(both)))
    return {
        "mass": summed(expert_N, contribution_N),
        "frequency": summed(expert_N, np.ones(len(expert_N))),
        "energy": summed(expert_N, contribution_N**2),
        "partners": partners_E,
        "lift": summed(both, lift) / np.maximum(partners_E, 1),
    }


def correlation(one_X: Floats, other_X: Floats, rng: np.random.Generator) -> Correlation | None:
    """None of too few experts, or where either is the same for all."""
    if len(one_X) < LEAST_EXPERTS or not np.ptp(one_X) or not np.ptp(other_X):
        return None
    ranks = [stats.rankdata(of_X) for of_X in (one_X, other_X)]
    one, other = ((of - of.mean()) / np.linalg.norm(of - of.mean()) for of in ranks)
    rho = float(one @ other)
    low, high = _interval([rho], [len(one_X)])
    permuted = np.stack([rng.permutation(other) for _ in range(PERMUTATIONS)]) @ one
    return Correlation(rho=rho, low=low, high=high, null=float(np.quantile(np.abs(permuted), 0.95)), experts=len(one_X))


def pooled(found: Sequence[Correlation]) -> Correlation:
    """The mean over blocks, whose samples are independent."""
    experts = [one.experts for one in found]
    low, high = _interval([one.rho for one in found], experts)
    return Correlation(
        rho=math.tanh(float(np.mean(np.arctanh([_inside(one.rho) for one in found])))),
        low=low,
        high=high,
        null=math.sqrt(sum(one.null**2 for one in found)) / len(found),
        experts=sum(experts),
    )


def _interval(rhos: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Of the mean of z = atanh(rho), whose variance is (1 + rho^2 / 2) / (n - 3) (Bonett and Wright 2000)."""
    z = float(np.mean(np.arctanh([_inside(rho) for rho in rhos])))
    variance = sum((1 + rho**2 / 2) / (count - 3) for rho, count in zip(rhos, counts, strict=True)) / len(rhos) ** 2
    half = float(stats.norm.ppf(0.975)) * math.sqrt(variance)
    return math.tanh(z - half), math.tanh(z + half)


def _inside(rho: float) -> float:
    return min(max(rho, -1 + 1e-9), 1 - 1e-9)


def _where(expert_TK: NDArray[np.int32], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in which experts fire, each once, in order of experts."""
    token_N, place_N = np.nonzero(expert_TK >= 0)
    rows = len(expert_TK) // length
    key = np.unique(expert_TK[token_N, place_N].astype(np.int64) * rows + token_N // length)
    return key % rows, key // rows
