"""What a field of a config may be, in words, from the constraints that pydantic checks it by."""

from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo


def in_words(info: FieldInfo) -> str:
    """Such as `1 to 4,096` or `above 0, at most 1`, `each` before it where there are many; nothing without a bound."""
    if get_origin(info.annotation) is tuple:
        element = in_words(FieldInfo.from_annotation(get_args(info.annotation)[0]))
        return element and f"each {element}"
    bounds = {name: getattr(one, name) for one in info.metadata for name in ("ge", "gt", "le", "lt") if _has(one, name)}
    if bounds.keys() == {"ge", "le"}:
        return f"{_number(bounds['ge'])} to {_number(bounds['le'])}"
    if bounds.keys() == {"ge"}:
        return f"{_number(bounds['ge'])} or more"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{said} {_number(bounds[name])}" for name, said in words.items() if name in bounds)


def _has(constraint: Any, name: str) -> bool:
    return getattr(constraint, name, None) is not None


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
