"""The only door to pykan: its B-spline basis, with its side effects kept in (it reseeds, prints, writes ./model)."""

import torch
from torch import Tensor

DEGREE = 3


def spline_basis(z_NE: Tensor, knots_EG: Tensor) -> Tensor:
    """(N, E, G - 1 + DEGREE) cubic B-spline basis of each column on its own even knots, pykan's `B_batch`.

    Outside the knots the basis fades to 0, so callers clamp their argument.
    """
    # Importing kan costs seconds and draws matplotlib and scikit-learn; only the distilling stage needs it.
    from kan.spline import B_batch, extend_grid

    with torch.no_grad():
        return B_batch(z_NE, extend_grid(knots_EG, DEGREE), DEGREE)
