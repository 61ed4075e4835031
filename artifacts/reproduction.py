"""The command line that makes an artifact again, every setting written out, from lineage alone."""

import shlex
from collections.abc import Iterator
from typing import Any

from artifacts.comparison import dotted
from artifacts.lineage import Lineage


def command(lineage: Lineage) -> str:
    """The command for a shell, a flag a line."""
    first, *flags = groups(lineage)
    return " \\\n    ".join(shlex.join(words) for words in (["python", "flows.py", *first], *flags))


def groups(lineage: Lineage) -> list[list[str]]:
    """The words after `python flows.py`: the stage, then each flag with its values."""
    inputs = [[f"--{role}", ref.id] for role, ref in lineage.inputs.items()]
    # Lineage records a GPU by its model, and a CPU with the C++ kernels that it had.
    device = [] if lineage.device.startswith("cpu") else [["--device", "cuda"]]
    return [["stage", lineage.stage], *inputs, ["--seed", str(lineage.seed)], *device, *_config(lineage.config)]


def _config(config: dict[str, Any]) -> Iterator[list[str]]:
    for name, value in dotted(config, "config"):
        flag = "--" + name.replace("_", "-")
        if isinstance(value, list):
            yield [flag, *map(_text, value)]
        elif (text := _text(value)).startswith("-"):
            yield [f"{flag}={text}"]  # as a word of its own it would be taken for a flag
        elif value != {}:  # a group without settings has no flag
            yield [flag, text]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
