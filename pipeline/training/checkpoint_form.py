"""The form of a training's checkpoint: what `fit` goes on from, compared with what it would itself have saved.

A seal tells that a file is as its writer left it, and not that the writer was this code.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PARTS = ("nibble_layout", "model", "optimizer", "generator", "global_generator", "step", "seconds", "record")


def problem_of(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, steps: int) -> str | None:
    """What keeps a run of so many steps from going on from this, apart from the model and the record; or None."""
    if saved.keys() != {*PARTS}:
        return f"it holds {', '.join(map(repr, saved)) or 'nothing'}, where a run saves {', '.join(PARTS)}"
    if type(saved["step"]) is not int or not 0 < saved["step"] < steps:
        return f"its step is {saved['step']!r}, of a run of {steps}"
    if type(saved["seconds"]) is not float or not 0 <= saved["seconds"] < float("inf"):
        return f"its seconds are {saved['seconds']!r}"
    for name, own in (("generator", torch.Generator().get_state()), ("global_generator", torch.get_rng_state())):
        if not _is_like(saved[name], own):
            return f"its {name} is no state of a generator of this version of torch"
    model = saved["model"]
    if not isinstance(model, dict) or not all(isinstance(tensor, Tensor) for tensor in model.values()):
        return "its model is no tensors by name"
    return _problem_of_optimizer(saved["optimizer"], optimizer)


def _problem_of_optimizer(saved: Any, optimizer: torch.optim.Optimizer) -> str | None:
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(saved, dict) or saved.keys() != {"state", "param_groups"}:
        return "its optimizer is none of AdamW's"
    groups, state = saved["param_groups"], saved["state"]
    # The rate is set at every step.
    if not isinstance(groups, list) or [_without_rate(group) for group in groups] != [_without_rate(g) for g in own]:
        return "its optimizer has other groups of parameters, or other settings"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(state, dict) or not state.keys() <= {*range(len(parameters))}:
        return f"its optimizer is of other parameters than these {len(parameters)}"
    for at, moments in state.items():
        like = {"step": torch.zeros(()), "exp_avg": parameters[at], "exp_avg_sq": parameters[at]}
        if not isinstance(moments, dict) or moments.keys() != like.keys():
            return f"its optimizer holds no moments of parameter {at}"
        for name, tensor in like.items():
            if not _is_like(moments[name], tensor):
                return f"its optimizer's {name} of parameter {at} is not {tuple(tensor.shape)} of {tensor.dtype}"
    return None


def _without_rate(group: Any) -> Any:
    return {name: value for name, value in group.items() if name != "lr"} if isinstance(group, dict) else None


def _is_like(got: Any, wanted: Tensor) -> bool:
    return isinstance(got, Tensor) and (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
