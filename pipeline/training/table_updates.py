"""Int4 tables that train: one step of each against what its layer's last backward pass left.

`Int4Tables` is what `fit` takes as `tables`. They are the two nibble planes with a scale and a moment a row, and
nothing else: no float copy of them, and no gradient of their size, is ever made.
"""

# D model width, E experts, R rows of a piece, B bytes of a packed row

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kernels.packing import pack_int4
from kernels.sr_update import UpdateCounts, sr_update
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.tables.experts import TableExperts
from pipeline.models.tables.int4 import Int4Table
from pipeline.run import current_run


class Int4Tables:
    """The trainable int4 tables of a model and the peak step of their weights.

    Of a model with sparse u, what is 0 in u when this is made stays 0, a zero nibble in both planes. The step is still
    that of the whole row: the moment counts the gradient of every coordinate.
    """

    def __init__(self, model: LanguageModel, *, peak_rate: float) -> None:
        self.model, self.peak_rate = model, peak_rate
        sparse = model.spec.experts_as(PeerSpec).u_terms > 0
        tables = [experts.tables_of(Int4Table) for experts in table_layers(model)]
        self.supports = [_support(of_layer["u"]) if sparse else None for of_layer in tables]

    def finite(self) -> bool:
        return gradients_are_finite(self.model)

    def skip(self) -> None:
        forget_gradients(self.model)

    def step(self, step: int, rate_share: float) -> Mapping[str, float]:
        counts = list(self._step(step, self.peak_rate * rate_share))
        weights = max(1, sum(c.rows for c in counts)) * self.model.shape.d_model
        return {
            "flips_per_touched_weight": sum(c.flips for c in counts) / weights,
            "scale_growths": float(sum(c.growths for c in counts)),
            "rows_refused": float(sum(c.refused for c in counts)),
        }

    def _step(self, step: int, learning_rate: float) -> Iterator[UpdateCounts]:
        for layer, experts in enumerate(table_layers(self.model)):
            assert experts.gradients is not None
            tables = experts.tables_of(Int4Table)
            for (which, table), gradients in zip(tables.items(), experts.gradients, strict=True):
                key = (current_run().stream(f"table {which} of block {layer}"), step)
                yield sr_update(table.state(), gradients, learning_rate=learning_rate, key=key)
                if which == "u" and (support_EB := self.supports[layer]) is not None:
                    table.weight_EB[gradients.row_R] &= support_EB[gradients.row_R]
                    table.accumulator_EB[gradients.row_R] &= support_EB[gradients.row_R]
            experts.gradients = None


def _support(table: Int4Table) -> Tensor:
    """(E, B) bytes whose nibbles are all ones where a latent value of the table is not 0, and zero elsewhere.

    A weight that is 0 for now, with something in its accumulator, is of the support too.
    """
    value_ED = table.latents(torch.arange(table.num_rows, device=table.weight_EB.device))
    return pack_int4(-(value_ED != 0).to(torch.int8))


def table_layers(model: LanguageModel) -> list[TableExperts]:
    """The expert layers of a model whose tables are no parameters; ValueError for another."""
    return model.expert_layers_of(TableExperts)


def gradients_are_finite(model: LanguageModel) -> bool:
    """Whether what the last backward pass left with the layers is finite."""
    left = [gradients for experts in table_layers(model) for gradients in experts.gradients or ()]
    return all(bool(torch.isfinite(t).all()) for g in left for t in (g.source_TD, g.weight_P))


def forget_gradients(model: LanguageModel) -> None:
    """Makes room for those of the next backward pass."""
    for experts in table_layers(model):
        experts.gradients = None
