"""The arguments of a task as logs, events and Flower show them: the values of the fields that the
message model allows to show, and the names of the others."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from app.messages import Message, fields_of

#: Most characters of one shown value.
LONGEST_SHOWN = 128

#: What pydantic calls while it reads a model, and a model may replace.
_HOOKS = ("__init__", "__get_pydantic_core_schema__", "model_post_init", "model_validate")

#: The kinds of validators that a model may add.
_VALIDATORS = ("validators", "field_validators", "root_validators", "model_validators")


def text_of(message: Message) -> str:
    """The fields that were given."""
    return _text(_fields(type(message)), message)


def quick_text(model: type[Message], args: Any, kwargs: Any) -> str | None:
    """What `text_of` says of the message that these arguments form; None if they form none, or if
    only the model itself can read them.

    It reads the arguments with a copy of the model that does not keep its input, which takes half
    the time.
    """
    quick = _quick(model)
    if quick is None:
        return None
    try:
        # Most arguments have the names of the fields already.
        is_named = not args and kwargs.keys() <= quick.names
        given = kwargs if is_named else fields_of(model, tuple(args), dict(kwargs))
        read = quick.read(given, extra="forbid")
    except (ValidationError, TypeError):
        return None
    return _text(quick.fields, read)


def _text(fields: Iterable[tuple[str, bool, str]], read: BaseModel) -> str:
    given, values = read.model_fields_set, vars(read)
    shown = [
        f"{name}: {repr(values[name])[:LONGEST_SHOWN]}" if is_shown else hidden
        for name, is_shown, hidden in fields
        if name in given
    ]
    return "{" + ", ".join(shown) + "}"


@cache
def _fields(model: type[Message]) -> list[tuple[str, bool, str]]:
    """Each field: its name, whether its value may be shown, and its text if not."""
    return [(name, name in model.shown, f"{name}: hidden") for name in model.model_fields]


@dataclass(frozen=True)
class _Quick:
    """How arguments are read in the quick way."""

    read: Callable[..., BaseModel]
    fields: Sequence[tuple[str, bool, str]]
    names: frozenset[str]
    """The names that are not the second spelling of another field."""


@cache
def _quick(model: type[Message]) -> _Quick | None:
    copied = _without_input(model)
    if copied is None:
        return None
    others = {info.alias for name, info in model.model_fields.items() if info.alias != name}
    names = frozenset(model.model_fields) - others
    return _Quick(TypeAdapter(copied).validator.validate_python, _fields(model), names)


def _without_input(model: type[Message]) -> type[BaseModel] | None:
    """A copy of a model that reads the same and does not keep its input; None if the model has
    anything of its own but fields, which a copy would not have."""
    if not _has_fields_only(model):
        return None
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        kind: Any = info.annotation
        # The text of a shown model may be its own.
        if isinstance(kind, type) and issubclass(kind, Message) and name not in model.shown:
            kind = _without_input(kind) or kind
        fields[name] = (kind, info)
    return create_model(model.__name__, __config__=ConfigDict(**model.model_config), **fields)


def _has_fields_only(model: type[Message]) -> bool:
    return model.model_config.get("extra") == "ignore" and _code_of(model) == _code_of(Message)


def _code_of(model: type[Message]) -> list[Any]:
    """What runs while a model is read."""
    hooks = [getattr(model, name) for name in _HOOKS]
    for kind in _VALIDATORS:
        found = getattr(model.__pydantic_decorators__, kind)
        hooks += [validator.func for validator in found.values()]
    return [getattr(hook, "__func__", hook) for hook in hooks]
