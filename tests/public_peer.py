"""lucidrains' PEER layer, without it: its forward pass in loops, as its code reads, and state dicts of its form.

Nothing here reads code of the house: tests compare the two.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

H, n, Q = 3, 7, 5
"""Heads, sub-keys an axis, and their width."""


def state(*, width, seed=0, separate=False, norm=False):
    """What the state dict of a layer holds."""
    draw = torch.Generator().manual_seed(seed)
    rows = n * n * (H if separate else 1)
    shapes = {
        "weight_down_embed.weight": (rows, width), "weight_up_embed.weight": (rows, width), "keys": (H, n, 2, Q),
        "to_queries.0.weight": (2 * H * Q, width), **({"norm.gamma": (width,)} if norm else {}),
    }  # fmt: skip
    drawn = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return {name: tensor * (0.3 if name == "norm.gamma" else 1) for name, tensor in drawn.items()}


def peer(w, x_ND, *, k=16, topk=None, non_competing=True, act=torch.nn.functional.gelu):
    """(N, D) the layer's output, token by token and head by head."""
    heads, keys = w["keys"].shape[:2]
    if "norm.gamma" in w:
        x_ND = (
            x_ND / x_ND.norm(dim=-1, keepdim=True).clamp(min=1e-12) * math.sqrt(x_ND.shape[1]) * (w["norm.gamma"] + 1)
        )
    separate = len(w["weight_down_embed.weight"]) > keys * keys
    out_ND = torch.zeros_like(x_ND)
    for token, x in enumerate(x_ND):
        query = (w["to_queries.0.weight"] @ x).reshape(2, heads, -1)
        for head in range(heads):
            row, column = (w["keys"][head, :, axis] @ query[axis, head] for axis in range(2))
            (best_row, r), (best_column, c) = row.topk(topk or k), column.topk(topk or k)
            score = (best_row[:, None] + best_column[None]).flatten()
            cell = (r[:, None] * keys + c[None]).flatten()
            kept, at = score.topk(1 if non_competing else k)
            gate = torch.relu(kept) if non_competing else torch.softmax(kept, -1)
            for g, expert in zip(gate, cell[at] + (head * keys * keys if separate else 0), strict=True):
                hidden = act(w["weight_down_embed.weight"][expert] @ x)
                out_ND[token] += g * hidden * w["weight_up_embed.weight"][expert]
    return out_ND


def write(path: Path, layers) -> str:
    save_file({f"blocks.{7 + at}.peer.{name}": t for at, layer in enumerate(layers) for name, t in layer.items()}, path)
    return str(path)


def write_layers(path: Path, *, width: int, layers: int) -> str:
    return write(path, [state(width=width, seed=seed) for seed in range(layers)])
