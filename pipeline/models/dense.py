"""The dense baseline: one MLP in every block, mandatory beside every claim."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kernels.activations import activation


class DenseSpec(BaseModel):
    """Shape of the dense MLP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Literal["dense"] = "dense"
    d_hidden: int = Field(default=512, ge=1, le=2**24, description="Hidden units of the MLP.")
    activation: Literal["relu2", "gelu", "silu", "relu"] = Field(
        default="relu2", description="Activation of a hidden unit."
    )

    @property
    def kind(self) -> str:
        return "dense"


class DenseMLP(nn.Module):
    def __init__(self, spec: DenseSpec, d_model: int) -> None:
        super().__init__()
        self.act = activation(spec.activation).f
        self.up = nn.Linear(d_model, spec.d_hidden)
        self.down = nn.Linear(spec.d_hidden, d_model)
        for linear in (self.up, self.down):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, x_ND: Tensor, routing: None) -> Tensor:
        return self.down(self.act(self.up(x_ND)))
