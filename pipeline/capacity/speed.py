"""Tokens a second, as a bound by the bytes of rows that a token moves, and as the kernels reach.

Speed is a bound, from the bytes of rows that a token moves in a layer, at the bandwidth of random rows of that length.
Each pair reads its rows of u and v once forward and, in training, once backward. A training step then reads and writes
all that is stored of touched rows: values, accumulator, scale and moment. Which rows its tokens touch is as if pairs
were drawn uniformly; real ones are skewed and touch fewer. AdamW reads and writes weights, gradients and both moments
of every row. Beside the bound stands what the kernels reach on this machine's CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.capacity.bandwidth import expert_sum_rate, int4_training_rate, memory, random_row_bandwidth
from pipeline.capacity.storage import INFERENCE, INT4_TRAINING, Capacity, Request, touched_rows, value_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Of a machine."""

    bandwidth: Mapping[int, float]
    """Bytes a second of random rows, by bytes of a row."""
    rate: Mapping[str, float]
    """Tokens a second that the kernels reach, by name of the storage; empty where it was not measured."""
    source: str
    """Where these are from."""


def measured_speed(request: Request, capacities: Sequence[Capacity]) -> Speed:
    """Of this machine's CPU, in some seconds."""
    under, width, pairs = memory(), request.width, request.pairs
    lengths = {value_bytes(storage, width) for storage in INFERENCE}
    bandwidth = {length: random_row_bandwidth(under, length) for length in sorted(lengths)}
    rate = {s.name: expert_sum_rate(under, s.value_bits, width, pairs) for s in INFERENCE}
    for of in capacities:
        if of.storage is INT4_TRAINING:
            touched = touched_rows(of.grid.experts, pairs * request.batch) / request.batch
            rate[of.storage.name] = int4_training_rate(under, width, pairs, touched)
    threads = f"threads: {torch.get_num_threads()}; other work on the machine lowers it"
    return Speed(bandwidth=bandwidth, rate=rate, source=f"random rows as long as a row's values, here ({threads})")


def given_speed(bandwidth: int, request: Request) -> Speed:
    lengths = {value_bytes(storage, request.width) for storage in INFERENCE}
    source = "as given; random rows reach less of a peak, short ones least"
    return Speed(bandwidth=dict.fromkeys(lengths, float(bandwidth)), rate={}, source=source)
