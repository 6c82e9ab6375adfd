"""Knobs of a `reasonrl prm ...` command: one dataclass a command, read from `key=value` arguments."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from reasonrl.config import ConfigError, nearest

Knobs = TypeVar("Knobs")

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


def read_knobs(kind: type[Knobs], args: Sequence[str], command: str) -> Knobs:
    """An instance of the dataclass `kind`. Raises ConfigError for a key that it lacks or a value of another type."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for arg in args:
        key, equals, text = arg.partition("=")
        if not equals or arg.startswith(("-", "~", "+")):
            raise ConfigError(f"'{arg}' is not key=value; {command} --help lists the keys")
        if key not in known:
            raise ConfigError(f"Unknown key '{key}' of {command}{nearest(key, known)}")
        if key in values:
            raise ConfigError(f"{key}= is given twice")
        values[key] = value_of(key, text, hints[key])
    missing = [name for name, f in known.items() if name not in values and f.default is MISSING]
    if missing:
        raise ConfigError(f"{command} needs {' '.join(f'{name}=...' for name in missing)}; --help explains them")
    return kind(**values)


def value_of(key: str, text: str, kind: Any) -> Any:
    """The value that `text` means. Raises ConfigError."""
    if get_origin(kind) in (types.UnionType, Union):
        (kind,) = (inner for inner in get_args(kind) if inner is not type(None))
        if text in ("", "null", "none"):
            return None
    if not text:
        raise ConfigError(f"{key}= is empty: give a value, or leave {key}= out")
    if get_origin(kind) is tuple:
        return tuple(value_of(key, part.strip(), get_args(kind)[0]) for part in text.strip("[]").split(","))
    if kind is bool:
        if text.lower() not in TRUE + FALSE:
            raise ConfigError(f"{key} must be true or false, got {text!r}")
        return text.lower() in TRUE
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError as error:
        name = {int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"{key} must be {name}, got {text!r}") from error


def require(held: bool, message: str) -> None:
    """Raise ConfigError unless it holds."""
    if not held:
        raise ConfigError(message)
