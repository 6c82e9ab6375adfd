"""Typed records from plain configuration: an unknown or ill-typed key is an error that names the nearest ones."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Union

T = TypeVar("T")


def unknown_name(kind: str, got: object, choices: Iterable[str]) -> str:
    """The message for a name that does not exist: "Unknown prompt 'boxd'. Did you mean 'boxed'? Choices: ..."."""
    names = sorted(choices)
    near = difflib.get_close_matches(str(got), names, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"Unknown {kind} {got!r}.{hint} Choices: {', '.join(names)}"


def typed(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from `values` (a dict or an OmegaConf node); `where` names the group in errors.

    Raises ValueError for an unknown key, a missing one, or a value of another type. Whole numbers serve as floats.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    given = {str(k): _plain(v) for k, v in values.items()}
    for key in given:
        if key not in fields:
            raise ValueError(unknown_name(f"setting in {where}", key, fields))
    missing = [n for n, f in fields.items() if n not in given and _required(f)]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: give {where}.{missing[0]}=...")
    return cls(**{key: _checked(value, hints[key], f"{where}.{key}") for key, value in given.items()})


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    """OmegaConf containers become dicts and lists; everything else stays."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_plain(v) for v in value]
    return value


def _checked(value: Any, hint: Any, where: str) -> Any:
    allowed = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in allowed)
    if Any in kinds:
        return value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"{where} must be {names}, got {value!r} ({type(value).__name__})")
    return value
