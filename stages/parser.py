"""A parser of flags whose mistakes are one sentence, with a flag for every field of a config."""

import argparse
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kernels.errors import Mistake
from stages.bounds import in_words
from stages.errors import did_you_mean, invalid
from stages.plan import plain


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and takes no beginnings of flags."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **settings)

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message}; `{self.prog} --help` says more")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        values, rest = self.parse_known_args([dashed(argument) for argument in arguments])
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            flag = next((word for word in rest if word.startswith("-")), rest[0])
            flag = flag.partition("=")[0]
            raise Mistake(f"unknown argument {flag!r}{did_you_mean(flag, flags)}; `{self.prog} --help` lists all")
        return values


class _Help(argparse.HelpFormatter):
    """As wide as the terminal, 79 characters where there is none; lines of descriptions stay apart."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=min(120, shutil.get_terminal_size().columns) - 1)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            textwrap.fill(
                line, width, initial_indent=indent, subsequent_indent=indent + " " * 14 * line.startswith("  ")
            )
            for line in text.split("\n")
        )


def dashed(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


M = TypeVar("M", bound=BaseModel)
Group = argparse._ArgumentGroup  # argparse has no public name for what add_argument_group returns


def add_fields(parser: Parser, model: BaseModel, *path: str) -> None:
    """A flag for every field of the model and of the models in it, in groups."""
    group = parser.add_argument_group(flag_of(path).lstrip("-") or "plan", (type(model).__doc__ or "").split("\n")[0])
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            add_fields(parser, value, *path, name)
        else:
            _add_field(group, info, value, *path, name)


def add_some_fields(group: Group, model: BaseModel, wanted: Collection[str], *path: str) -> None:
    """Flags for the fields whose dotted paths are wanted, in the order of the model, in one group."""
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            add_some_fields(group, value, wanted, *path, name)
        elif ".".join((*path, name)) in wanted:
            _add_field(group, info, value, *path, name)


def _add_field(group: Group, info: FieldInfo, value: Any, *path: str) -> None:
    group.add_argument(
        flag_of(path), dest=".".join(path), default=argparse.SUPPRESS, metavar=_metavar(info.annotation),
        nargs="*" if isinstance(value, tuple) else None, help=_help(info, value),
    )  # fmt: skip


def _help(info: FieldInfo, value: Any) -> str:
    """What the field is, with its range and its default."""
    about = "; ".join(part for part in (in_words(info), f"default: {_shown(value)}") if part)
    return f"{info.description or 'fixed'} ({about})".replace("%", "%%")


def flag_of(path: Sequence[str]) -> str:
    """Such as `--training.learning-rate`."""
    return "--" + ".".join(path).replace("_", "-")


def _shown(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0].__name__.upper()
    return annotation.__name__.upper()


def overridden(model: M, values: Mapping[str, Any], *path: str) -> M:
    """The model with the values that were given for its fields, checked as a whole."""
    given = {
        tuple(name.split("."))[len(path) :]: value for name, value in values.items() if _is_field(name, model, path)
    }
    try:
        return type(model).model_validate(_merged(plain(model), given))
    except ValidationError as error:
        raise Mistake(invalid(error, lambda loc: flag_of((*path, *loc)))) from None


def _is_field(name: str, model: BaseModel, path: Sequence[str]) -> bool:
    parts = name.split(".")
    return (
        parts[: len(path)] == list(path)
        and parts[len(path) :][:1] != []
        and parts[len(path)] in type(model).model_fields
    )


def _merged(plain: dict[str, Any], given: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The nested dicts with other values at the given paths."""
    for (*above, name), value in given.items():
        place = plain
        for part in above:
            place = place[part]
        place[name] = value
    return plain
