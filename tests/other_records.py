"""A second generator of planted records, unlike tests/planted_records.py in all that a test could lean on.

Documents are of unequal lengths, experts fire by Poisson rates of their topics and some come in bursts within a
document; concepts come by themselves, several or none on a token, and the last says the label; labels are shared by
many concepts, and how noisy they are hangs on the concept. Pairs: *codes*, whose members fire alone at unequal rates;
*followers*, where the second mostly fires with the first and says what it says; *composed*, by the product of meanings;
*cancelling*, where both together say what neither says, which is no joint code by its definition.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Pair = tuple[int, int]
KINDS = ("code", "follower", "composed", "cancelling")


@dataclass(frozen=True, kw_only=True, slots=True)
class Other:
    """What to plant."""

    seed: int = 0
    experts: int = 3000
    tokens: int = 150_000
    pairs: int = 20
    """Of each kind."""
    strata: int = 6
    labels: int = 600
    length: float = 150.0
    """Of a document, the median."""
    noise: float = 0.3
    """Most of the share of a concept's tokens whose label is any."""
    rate: float = 5.0
    """Background experts on a token, the mean."""
    bursty: float = 0.3
    """Share of them that come in bursts."""
    often: float = 1.0
    """Of how often concepts come."""
    dtype: torch.dtype = torch.float32


def plant_other(of: Other) -> tuple[dict[str, Tensor], dict[str, frozenset[Pair]]]:
    """Tensors of the layout, and the pairs of each kind."""
    rng = np.random.default_rng([of.seed, 77])
    lengths = np.ceil(of.length * rng.lognormal(0, 1, 4 + 4 * int(of.tokens / of.length))).astype(int)
    document_T = np.repeat(np.arange(len(lengths)), lengths)[: of.tokens]
    document_T = np.concatenate([document_T, np.full(of.tokens - len(document_T), len(lengths))])
    weight_S = rng.gamma(1.0, 1.0, of.strata)
    stratum_T = rng.choice(of.strata, document_T.max() + 1, p=weight_S / weight_S.sum())[document_T]
    order = rng.permutation(of.experts)
    planted, background = order[: 8 * of.pairs].reshape(4, of.pairs, 2), order[8 * of.pairs :]
    fired: list[tuple[np.ndarray, int]] = []
    label_T = rng.choice(of.labels, of.tokens, p=_zipf(of.labels, 1.0))
    for kind, pairs in zip(KINDS, planted, strict=True):
        for first, second in pairs.tolist():
            said = rng.choice(of.labels, 6, replace=False)
            meanings = np.exp(rng.normal(0, 2.0, (2, 6)))
            noise = rng.uniform(0, of.noise)
            scale_S = rng.gamma(2.0, 0.5, of.strata)
            rates = 0.004 * of.often * rng.lognormal(0, 0.7, 3) * ([1, 0.1, 0.9] if kind == "follower" else [1, 1, 0.6])
            state_T = _states(rng, np.minimum(rates * scale_S[:, None], 0.2), stratum_T)
            for state, members in ((1, (first,)), (2, (second,)), (3, (first, second))):
                tokens = np.flatnonzero(state_T == state)
                fired += [(tokens, member) for member in members]
                shares = {
                    "code": np.eye(6)[state - 1],
                    "follower": np.eye(6)[0],
                    "composed": meanings[state - 1] if state < 3 else meanings.prod(0),
                    "cancelling": np.eye(6)[state - 1],
                }[kind]
                if kind == "cancelling" and state == 3:
                    continue
                heard = tokens[rng.random(len(tokens)) >= noise]
                label_T[heard] = rng.choice(said, len(heard), p=shares / shares.sum())
    rate_N = of.rate * _zipf(len(background), 0.8)
    for expert, rate in zip(background.tolist(), rate_N.tolist(), strict=True):
        rate_S = np.minimum(rate * rng.gamma(0.8, 1.25, of.strata), 0.5)
        wanted = rate_S[stratum_T]
        count = rng.poisson(wanted.sum())
        if rng.random() < of.bursty and count > 20:
            starts = rng.choice(of.tokens, max(1, count // 8), p=wanted / wanted.sum())
            tokens = (starts[:, None] + rng.integers(0, 25, (len(starts), 8))).ravel()
            tokens = np.minimum(tokens, of.tokens - 1)
            tokens = tokens[document_T[tokens] == np.repeat(document_T[starts], 8)]
        else:
            tokens = rng.choice(of.tokens, count, p=wanted / wanted.sum())
        fired.append((np.unique(tokens), expert))
    return _tensors(of, rng, fired, {"document": document_T, "stratum": stratum_T, "label": label_T}), {
        kind: frozenset((min(pair), max(pair)) for pair in pairs.tolist())
        for kind, pairs in zip(KINDS, planted, strict=True)
    }


def _zipf(count: int, power: float) -> np.ndarray:
    share = np.arange(1, count + 1) ** -power
    return share / share.sum()


def _states(rng: np.random.Generator, rate_S3: np.ndarray, stratum_T: np.ndarray) -> np.ndarray:
    """1 where the first fires alone, 2 the second, 3 both, 0 neither."""
    upto_T3 = np.cumsum(rate_S3, axis=1)[stratum_T]
    place_T = (rng.random((len(stratum_T), 1)) >= upto_T3).sum(1)
    return np.where(place_T < 3, place_T + 1, 0)


def _tensors(
    of: Other, rng: np.random.Generator, fired: list[tuple[np.ndarray, int]], columns: dict[str, np.ndarray]
) -> dict[str, Tensor]:
    token = np.concatenate([tokens for tokens, _ in fired])
    expert = np.concatenate([np.full(len(tokens), name) for tokens, name in fired])
    order = rng.permutation(len(token))
    order = order[np.argsort(token[order], kind="stable")]
    token, expert = token[order], expert[order]
    place = np.arange(len(token)) - np.searchsorted(token, token)
    expert_TK = np.full((of.tokens, place.max() + 1), -1)
    expert_TK[token, place] = expert
    integers = {name: torch.from_numpy(column.astype(np.int64)) for name, column in columns.items()}
    return {
        "expert": torch.from_numpy(expert_TK),
        "contribution": torch.from_numpy(rng.lognormal(0, 1, expert_TK.shape)).to(of.dtype),
        "token": integers["label"].to(torch.int32),
        **integers,
    }
