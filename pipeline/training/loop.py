"""The one training loop. Training, distillation and fine-tuning differ by the loss they pass in.

A run that is killed goes on from its last checkpoint, with the same bits as one that was not.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.corpus.splits import Split
from pipeline.corpus.windows import random_windows
from pipeline.run import Progress, current_run
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.config import TrainingConfig
from pipeline.training.training_curve import Curve, Record

_log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
Losses = tuple[Tensor, Mapping[str, float]]

MOST_SKIPPED = 10
"""Steps in a row that may give a loss or a gradient that is not finite: one bad batch is no end, a lost model is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Parameters that learn at their own rate."""

    parameters: list[nn.Parameter]
    multiplier: float
    """Of the config's learning rate."""


class Tables(Protocol):
    """What no torch optimizer holds: tables that move by a rule of their own (pipeline/training/table_updates.py)."""

    def finite(self) -> bool:
        """Whether the gradients that the last backward pass left are."""
        ...

    def step(self, step: int, rate_share: float) -> Mapping[str, float]:
        """Moves against those gradients and forgets them; returns numbers to report."""
        ...

    def skip(self) -> None:
        """Forgets those gradients."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """What a loop did: the last tenth's mean losses, the way there, and how long it took."""

    losses: dict[str, float]
    curve: Curve
    totals: Mapping[str, float]
    """The sum of each number over all steps."""
    skipped_steps: int
    """Steps whose loss or gradient was not finite; they moved nothing."""
    seconds: float
    tokens_per_second: float


def fit(
    model: nn.Module,
    *,
    split: Split,
    config: TrainingConfig,
    loss: Callable[[Batch, int], Losses],
    rates: Iterable[Rate] = (),
    tables: Tables | None = None,
    what: str = "train",
) -> Fitted:
    """Trains `model` in place on random windows of `split`, in the mode (train or eval) that it is in.

    `loss(batch, step)` returns the loss and numbers to report. Parameters that need no gradient are left alone; those
    in `rates` learn at their own multiple; `tables` move by a rule of their own. A step whose loss or gradient is not
    finite moves nothing and is counted. RuntimeError after MOST_SKIPPED of them in a row.
    """
    run = current_run()
    if config.warmup_steps >= config.steps > 1:
        _log.warning(
            "%s: warm-up takes all %d steps, so that the learning rate reaches its peak with the last and never falls; "
            "lower warmup_steps", what, config.steps,
        )  # fmt: skip
    optimizer = torch.optim.AdamW(_groups(model, config, rates), betas=(0.9, config.beta2), fused=True)
    mover = _Mover(optimizer, config, tables, what)
    generator = run.generator(f"{what} batches")
    checkpoint = Checkpoint(run.checkpoints / f"{what.replace(' ', '-')}.pt" if run.checkpoints else None)
    record = Record(steps=config.steps, tokens_a_step=config.tokens_a_step)
    first, spent = checkpoint.restore(model, optimizer, generator, record)
    start = last_saved = last_told = time.monotonic()
    for step in range(first, config.steps):
        inputs, targets = random_windows(
            split, batch=config.batch_size, length=config.context_length, generator=generator
        )
        total, numbers = loss((inputs.to(run.device), targets.to(run.device)), step)
        moved = mover.move(total, step)
        if moved is None:
            record.skip(step)
        else:
            numbers = {**numbers, **moved}
            record.add(step, numbers)
        now = time.monotonic()
        if now - last_told > 0.5 or step + 1 == config.steps:
            speed = (step + 1 - first) * config.tokens_a_step / (now - start)
            shown = {**numbers, "tokens_per_second": speed}
            run.report(Progress(what=what, step=step + 1, total=config.steps, seconds=now - start, numbers=shown))
            last_told = now
        if now - last_saved > config.checkpoint_seconds and step + 1 < config.steps:
            checkpoint.save(model, optimizer, generator, step + 1, spent + now - start, record)
            last_saved = now
    seconds = spent + time.monotonic() - start
    model.eval()
    return Fitted(
        losses=record.last_tenth(),
        curve=record.curve(),
        totals=record.totals(),
        skipped_steps=record.skipped_steps,
        seconds=seconds,
        tokens_per_second=config.train_tokens / seconds,
    )


class _Mover:
    """Moves parameters and tables against a loss, unless it or a gradient is not finite. Made before a restore."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: TrainingConfig, tables: Tables | None, what: str
    ) -> None:
        self.optimizer, self.config, self.tables, self.what = optimizer, config, tables, what
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.skipped_in_a_row = 0

    def move(self, total: Tensor, step: int) -> Mapping[str, float] | None:
        """The numbers of the tables; None if nothing moved. RuntimeError after MOST_SKIPPED of those in a row."""
        share = self.config.rate_share(step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.config.gradient_clip)
        if bool(torch.isfinite(total) & torch.isfinite(norm)) and (self.tables is None or self.tables.finite()):
            self.skipped_in_a_row = 0
            self.optimizer.step()
            return {} if self.tables is None else self.tables.step(step, share)
        self._skip(total, step)
        return None

    def _skip(self, total: Tensor, step: int) -> None:
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == MOST_SKIPPED:
            raise RuntimeError(
                f"{self.what}: the loss ({total.item():.4g}) or its gradient is not finite at step {step} and at the "
                f"{MOST_SKIPPED - 1} before it; lower the learning rate"
            )
        if self.tables is not None:
            self.tables.skip()


def _groups(model: nn.Module, config: TrainingConfig, rates: Iterable[Rate]) -> list[dict[str, Any]]:
    """AdamW's groups: every multiplier's matrices, which decay, and the rest, which do not."""
    multiplier = {id(p): rate.multiplier for rate in rates for p in rate.parameters}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault((multiplier.get(id(p), 1.0), p.ndim >= 2), []).append(p)
    return [
        {
            "params": parameters,
            "lr": config.learning_rate * factor,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (factor, decays), parameters in groups.items()
    ]
