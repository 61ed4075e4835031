"""As much of transformers as the modeling file of an export imports, so that its numbers are tested without it.

`make interop` runs the same folders under transformers itself.
"""

import importlib.util
import json
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from torch import nn


class Config:
    output_hidden_states = False

    def __init__(self, **values):
        vars(self).update(values)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config

    def post_init(self): ...


class Cache:
    """Keys and values of each layer, as many as there were."""

    def __init__(self, config):
        self.layers = {}

    def get_seq_length(self):
        return self.layers[0][0].shape[2] if self.layers else 0

    def get_mask_sizes(self, length, layer):
        return self.get_seq_length() + length, 0

    def update(self, keys, values, layer):
        before = self.layers.get(layer, (keys[:, :, :0], values[:, :, :0]))
        self.layers[layer] = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        return self.layers[layer]


class Output:
    def to_tuple(self):
        return tuple(getattr(self, field.name) for field in fields(self))


def opened(folder: Path) -> nn.Module:
    """The model in an exported folder, by its own modeling file."""
    made = {name: ModuleType(name) for name in ("transformers", "transformers.cache_utils", "transformers.utils")}
    vars(made["transformers"]).update(GenerationMixin=type("GenerationMixin", (), {}), PreTrainedConfig=Config,
                                      PreTrainedModel=Model)  # fmt: skip
    vars(made["transformers.cache_utils"]).update(DynamicCache=Cache)
    vars(made["transformers.utils"]).update(ModelOutput=Output)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        spec = importlib.util.spec_from_file_location("modeling_of_an_export", folder / "modeling_legible.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["modeling_of_an_export"] = module
        spec.loader.exec_module(module)
    finally:
        for name, other in before.items():
            sys.modules.pop(name)
            if other is not None:
                sys.modules[name] = other
    model = module.LegibleForCausalLM(module.LegibleConfig(**json.loads((folder / "config.json").read_text())))
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    model.load_state_dict(tensors)
    return model.eval()
