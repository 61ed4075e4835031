"""Where a training has come to: saved now and then, and gone on from with the same bits."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from artifacts import ArtifactError
from kernels.packing import LAYOUT
from pipeline.models.soundness import check_sound
from pipeline.training.checkpoint_form import problem_of
from pipeline.training.sealed_file import load_sealed, save_sealed, unusable
from pipeline.training.training_curve import Record


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a loop has come to, replaced whole at each save; None keeps none."""

    path: Path | None

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        step: int,
        seconds: float,
        record: Record,
    ) -> None:
        if self.path is None:
            return
        state = {
            "nibble_layout": LAYOUT,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "step": step,
            "seconds": seconds,
            "record": record.state_dict(),
        }
        save_sealed(state, self.path)

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, record: Record
    ) -> tuple[int, float]:
        """The steps done and the seconds they took; 0 of both where there is nothing to go on from."""
        if self.path is None or not self.path.exists():
            return 0, 0.0
        saved = load_sealed(self.path)
        if problem := problem_of(saved, optimizer, record.steps):
            raise unusable(self.path, f"is of another form: {problem}")
        if (layout := saved["nibble_layout"]) != LAYOUT:
            raise ArtifactError(
                f"the checkpoint {self.path} has int4 tables of layout {layout}; this version reads layout {LAYOUT}: "
                "use --force to begin anew, or go on with the version that saved it"
            )
        if not record.takes(saved["record"], saved["step"]):
            raise unusable(self.path, f"is of another form: its record is none of {saved['step']} steps")
        try:
            model.load_state_dict(saved["model"])
        except RuntimeError as error:
            raise unusable(self.path, f"is of another model: {' '.join(str(error).split())}") from None
        try:
            check_sound(model)
        except ArtifactError as error:
            raise unusable(self.path, f"is of another model: {error}") from None
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        torch.set_rng_state(saved["global_generator"])
        record.load_state_dict(saved["record"])
        return saved["step"], saved["seconds"]
