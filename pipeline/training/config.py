"""How long and how fast a model trains."""

import math

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class TrainingConfig(BaseModel):
    """How long and how fast a model trains: AdamW, linear warm-up, cosine decay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1500, ge=1, le=10_000_000, description="Optimizer steps.")
    batch_size: int = Field(default=8, ge=1, le=65_536, description="Sequences a step.")
    context_length: int = Field(default=128, ge=2, le=65_536, description="Tokens a sequence.")
    learning_rate: float = Field(
        default=3e-3,  # of 2e-3, 3e-3 and 4.5e-3 (docs/benchmarks/2026-11-29-rates.md)
        gt=0,
        le=1,
        description="Peak learning rate of AdamW.",
    )
    final_rate_share: float = Field(
        default=0.05, ge=0, le=1, description="Learning rate at the end, as a share of the peak."
    )
    warmup_steps: int = Field(
        default=100,
        ge=0,
        validate_default=True,
        description="Steps of linear warm-up; more than `steps` become `steps`.",
    )
    weight_decay: float = Field(default=0.1, ge=0, le=1, description="AdamW's decay, of matrices only.")
    beta2: float = Field(default=0.99, gt=0, lt=1, description="AdamW's decay of the second moment.")
    gradient_clip: float = Field(default=1.0, gt=0, description="Largest norm of all gradients together.")
    checkpoint_seconds: float = Field(
        default=60.0, gt=0, description="Seconds between checkpoints; does not affect the result.", exclude=True
    )

    @field_validator("warmup_steps")
    @classmethod
    def _ends_in_time(cls, warmup_steps: int, info: ValidationInfo) -> int:
        """In the config itself, so that a recipe names the warm-up that its artifact had."""
        return min(warmup_steps, info.data.get("steps", warmup_steps))

    @property
    def tokens_a_step(self) -> int:
        return self.batch_size * self.context_length

    @property
    def train_tokens(self) -> int:
        return self.steps * self.tokens_a_step

    def rate_share(self, step: int) -> float:
        """The learning rate of this step as a share of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.final_rate_share + (1 - self.final_rate_share) * 0.5 * (1 + math.cos(math.pi * done))
