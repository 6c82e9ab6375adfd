"""From a factory and its knobs to a checked `Method`.

A factory is any function that returns a `Method`. Its knobs are its parameters; the part slots (prefix, difficulty,
reward, advantage, overlong) may be parameters too, and a part given for a slot replaces the method's own.
Knobs are checked by name and type here, by range in the parts that hold them.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from reasonrl.core.method import SLOTS, Method

Factory = Callable[..., Method]


def load_factory(path: str) -> Factory:
    """Import `package.module:name`, or `package.module.name` as Hydra writes it.

    Raises:
        ValueError: no such module or name, or it cannot be called.
    """
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    if not module_name or not name:
        raise ValueError(f"a factory is named package.module:function, got {path!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import {module_name!r} of factory {path!r}: {error}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        choices = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise ValueError(f"{module_name!r} has no function {name!r}.{_nearest(name, choices)}")
    return factory  # type: ignore[no-any-return]


def with_parts(factory: Factory) -> Factory:
    """Decorate a factory: it takes the five part slots as knobs too, and a part that is given replaces its own.

    For factories whose parts do not depend on each other; one that must not build a part it is not going to use takes
    the slots itself.
    """
    parameters = inspect.signature(factory).parameters.values()
    slots = [inspect.Parameter(slot, inspect.Parameter.KEYWORD_ONLY, default=None) for slot in SLOTS]

    @wraps(factory)
    def build(**knobs: Any) -> Method:
        parts = {slot: knobs.pop(slot, None) for slot in SLOTS}
        return replace(factory(**knobs), **{slot: part for slot, part in parts.items() if part is not None})

    build.__signature__ = inspect.Signature([*slots, *parameters])  # type: ignore[attr-defined]
    return build


def check_knobs(factory: Factory, knobs: Mapping[str, Any]) -> None:
    """Raise unless `factory(**knobs)` would bind, with values of the annotated types.

    Raises:
        ValueError: a knob the factory does not have, with the nearest names, or a missing one.
        TypeError: a value of another type than annotated; unannotated knobs take anything.
    """
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    choices = [n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name in knobs:
        if name not in choices and not open_ended:
            raise ValueError(f"{_name(factory)} has no knob {name!r}.{_nearest(name, choices)}")
    for name in choices:
        if parameters[name].default is inspect.Parameter.empty and name not in knobs:
            raise ValueError(f"{_name(factory)} needs the knob {name!r}; set method.{name}=...")
    hints = _hints(factory)
    for name, value in knobs.items():
        if name in hints and name not in SLOTS and not fits(value, hints[name]):
            raise TypeError(f"{_name(factory)}: {name} must be {_spell(hints[name])}, got {value!r}")


def make(factory: Factory, knobs: Mapping[str, Any]) -> Method:
    """Check the knobs, call the factory, and put given parts into slots the factory does not take itself.

    Raises:
        ValueError, TypeError: see `check_knobs`; ranges are checked by the parts.
    """
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    outside = {n: v for n, v in knobs.items() if n in SLOTS and n not in parameters and not open_ended}
    inside = {n: v for n, v in knobs.items() if n not in outside}
    check_knobs(factory, inside)
    method = factory(**inside)
    if not isinstance(method, Method):
        raise TypeError(f"{_name(factory)} must return a Method, got {type(method).__name__}")
    _refuse_idle(factory, inside, method)
    return replace(method, **{slot: part for slot, part in outside.items() if part is not None})


def _refuse_idle(factory: Factory, knobs: Mapping[str, Any], method: Method) -> None:
    """Raise ValueError for a knob that no longer does anything, because a given part replaces the one that reads it.

    It may agree with the part, such as `n` with a prefix part of the same n.
    """
    parameters = inspect.signature(factory).parameters
    parts = {slot: knobs[slot] for slot in SLOTS if knobs.get(slot) is not None}
    if not parts:
        return
    for name in sorted(knobs.keys() & parameters.keys() - set(SLOTS)):
        value, default = knobs[name], parameters[name].default
        if default is inspect.Parameter.empty or value == default:
            continue
        if any(getattr(part, name, None) == value for part in parts.values()):
            continue
        try:
            same = bool(factory(**{n: v for n, v in knobs.items() if n != name}) == method)
        except Exception:  # other knobs need this one
            continue
        if same:
            given = " and ".join(f"{slot}={type(part).__name__}" for slot, part in parts.items())
            raise ValueError(
                f"{name}={value!r} has no effect beside {given}, which replaces the part that reads it: leave it out, or "
                f"set it on that part"
            )


def fits(value: object, annotation: Any) -> bool:
    """Whether a value from a configuration file fits an annotation: int passes for float, bool for neither."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(origin or annotation, type):
        kind = origin or annotation
        if getattr(kind, "_is_protocol", False):  # parts: `Method` checks them, with a better message
            return True
        return isinstance(value, list | tuple) if kind in (list, tuple) else isinstance(value, kind)
    return True


def _hints(factory: Factory) -> dict[str, Any]:
    target = factory.__init__ if inspect.isclass(factory) else factory  # a class is a factory of itself
    try:
        return get_type_hints(target, include_extras=True)
    except NameError:  # annotations under TYPE_CHECKING cannot be resolved; names are checked, types are not
        return {}


def _spell(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_spell(option) for option in get_args(annotation))
    return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _name(factory: Factory) -> str:
    return f"{getattr(factory, '__module__', '?')}.{getattr(factory, '__qualname__', type(factory).__name__)}"


def _nearest(name: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"{meant} Choices: {', '.join(sorted(choices)) or 'none'}"
