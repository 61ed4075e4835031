"""What a person fills in to run one stage from the Prefect UI: the parameters of its flow, described."""

import inspect
from typing import Any

from pipeline.stage import Device, Stage
from stages.plan import plain


def signature(stage: Stage, default_store: str) -> inspect.Signature:
    """The config, an id for each input, and where and how to run; Prefect makes its form from it."""
    fields: dict[str, tuple[Any, Any]] = {
        "config": (stage.config_type, plain(stage.config_type())),
        **{role: (str, "latest") for role in stage.inputs},
        "store": (str, default_store),
        "seed": (int, 0),
        "device": (Device, "cpu"),
        "force": (bool, False),
    }
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in fields.items()
        ]
    )


def description(stage: Stage) -> str:
    """The stage's summary and a line for each parameter, as a docstring."""
    lines = {
        "config": "The stage's settings.",
        **{role: f"Id of the {' or '.join(r.kinds)} to use, or latest." for role, r in stage.inputs.items()},
        "store": "Folder of the artifacts.",
        "seed": "Seed of all randomness.",
        "device": "Where tensors are.",
        "force": "Make it again even if the store has it.",
    }
    described = "\n".join(f"    {name}: {text}" for name, text in lines.items())
    return f"{stage.summary}\n\nArgs:\n{described}"
