"""Is this data shaped like that dataclass? Asked of what comes from outside, answered by pydantic.

Every dataclass of the spec gets a pydantic model of the same fields, made on first use, in which
types are strict (a truth value is no number), keys are closed and numbers finite. Pydantic is slow
to import, so nothing imports this module before there is a file of the user's to check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic_core import PydanticCustomError

from worthit.errors import nearest
from worthit.spec.codec import (
    TAGS,
    Path,
    classes_of,
    hints_of,
    item_hint,
    length_hint,
    member,
    options_of,
    required_of,
    shown,
    suggest,
)
from worthit.spec.model import Layer

# More layers than any model has; a slip of the keyboard must not fill the memory.
MAX_REPEAT = 10_000


class Misfit(NamedTuple):
    """One thing wrong at `path`; where it `blocks`, what holds it cannot be built."""

    path: Path
    message: str
    blocks: bool = True


def check_shape(data: Any, cls: type, path: Path = ()) -> list[Misfit]:
    """Everything about `data` that is not shaped like `cls`; `path` is where `data` stands."""
    try:
        _adapter(cls).validate_python(data)
    except ValidationError as error:
        found = [_misfit(dict(e), data, cls, path) for e in error.errors(include_url=False)]
        return list(dict.fromkeys(found))
    return []


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(_type_of(cls))


def _whole(value: Any) -> Any:
    """A float without a fraction may stand for a whole number: `tokens = 15e12`."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_truth_value(value: Any) -> Any:
    """Python takes `True` for 1 wherever it compares; a description may not."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a whole number")
    return value


def _checked(option: Any) -> Any:
    if option is int:
        return Annotated[int, BeforeValidator(_whole)]
    if get_origin(option) is Literal and isinstance(get_args(option)[0], int):
        return Annotated[option, BeforeValidator(_no_truth_value)]
    return option


@cache
def _type_of(hint: Any) -> Any:
    """The pydantic type that checks what a field of type `hint` may hold."""
    item = item_hint(hint)
    if item is not None:
        items: Any = list[_entry_type() if item is Layer else _type_of(item)]  # type: ignore[misc]  # made at run time
        n = length_hint(hint)
        return items if n is None else Annotated[items, Field(min_length=n, max_length=n)]
    classes = classes_of(hint)
    options = [option for option in options_of(hint) if option not in classes]
    checked = [_checked(option) for option in options]
    if len(classes) == 1:
        checked.append(_model_of(classes[0]))
    elif classes:
        key = TAGS[classes[0]][0]
        either = reduce(or_, (_model_of(cls, is_choice=True) for cls in classes))
        checked.append(Annotated[either, Field(discriminator=key)])
    return reduce(or_, checked)


@cache
def _model_of(cls: type, *, is_choice: bool = False) -> Any:
    required = required_of(cls)
    members: dict[str, Any] = {
        name: (_type_of(hint), ... if name in required else None)
        for name, hint in hints_of(cls).items()
    }
    if cls in TAGS:
        key, tag = TAGS[cls]
        # The tag says which of several stands here; where only one can, it may be left out.
        members[key] = (Literal[tag], ... if is_choice else tag)
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **members)


@cache
def _entry_type() -> Any:
    """One entry of `layers`: a layer, or a layer or pattern with how often it repeats."""
    layer: Any = _model_of(Layer)
    times = Annotated[int, BeforeValidator(_whole), Field(gt=0, le=MAX_REPEAT)]
    config = ConfigDict(extra="forbid", strict=True)
    run = create_model("Run", __config__=config, repeat=(times, ...), layer=(layer, ...))
    several: Any = Annotated[list[layer], Field(min_length=1)]
    pattern = create_model("Pattern", __config__=config, repeat=(times, ...), layers=(several, ...))
    return Annotated[
        Annotated[layer, Tag("~layer")]
        | Annotated[run, Tag("~run")]
        | Annotated[pattern, Tag("~pattern")],
        Discriminator(_entry_tag),
    ]


def _entry_tag(data: Any) -> str:
    if not (isinstance(data, Mapping) and "repeat" in data):
        return "~layer"
    return "~pattern" if "layers" in data else "~run"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def _misfit(error: dict[str, Any], data: Any, cls: type, path: Path) -> Misfit:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    inside = _path_in(data, error["loc"], is_key=kind in ("missing", "extra_forbidden"))
    at = (*path, *inside)
    if kind == "missing":
        return Misfit(at, "missing")
    if kind == "extra_forbidden":
        return Misfit(at, suggest(str(inside[-1]), _known_keys(cls, data, inside[:-1])), False)
    if kind == "union_tag_not_found":
        key = context["discriminator"].strip("'")
        return Misfit((*at, key), f"missing; pick one of {', '.join(_tags_of(cls, data, inside))}")
    if kind == "union_tag_invalid":
        key = context["discriminator"].strip("'")
        return Misfit((*at, key), _choice(_tags_of(cls, data, inside), value[key]))
    if kind == "literal_error":
        return Misfit(at, _choice(_literals(context["expected"]), value))
    if kind in _EXPECTED:
        return Misfit(at, f"must be {_EXPECTED[kind]}, got {shown(value)}")
    if kind == "greater_than":
        return Misfit(at, f"must be positive, got {shown(value)}")
    if kind in ("too_short", "too_long"):
        n = length_hint(_hint_at(cls, data, inside)) or 1
        return Misfit(at, f"must hold {n} {'item' if n == 1 else 'items'}, got {len(value)}")
    message = error["msg"].removeprefix("Input should ").removeprefix("Value should ")
    return Misfit(at, f"must {message}, got {shown(value)}")


def _path_in(data: Any, loc: Sequence[str | int], *, is_key: bool) -> Path:
    """Pydantic's location without the tags of unions, which stand nowhere in the data."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        is_item = isinstance(part, int) and isinstance(data, (list, tuple))
        if is_item or (isinstance(data, Mapping) and part in data):
            data = data[part]
        elif not (is_key and i == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _hint_at(cls: type, data: Any, path: Path) -> Any:
    hint: Any = cls
    for part in path:
        if isinstance(part, int):
            hint, data = item_hint(hint), data[part]
            continue
        found = member(hint, data)
        if found is Layer and "repeat" in data:  # a run or a pattern: stay at its layers
            hint = tuple[Layer, ...] if part == "layers" else Layer
        elif found is not None:
            hint = hints_of(found)[part]
        data = data[part]
    return hint


def _known_keys(cls: type, data: Any, path: Path) -> tuple[str, ...]:
    hint = _hint_at(cls, data, path)
    for part in path:
        data = data[part]
    found = member(hint, data)
    if found is Layer and "repeat" in data:
        return ("repeat", "layer", "layers")
    return tuple(hints_of(found)) if found else ()


def _tags_of(cls: type, data: Any, path: Path) -> list[str]:
    return [TAGS[option][1] for option in classes_of(_hint_at(cls, data, path))]


def _literals(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _choice(known: Sequence[str], got: Any) -> str:
    near = nearest(got, known) if isinstance(got, str) else ()
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"must be one of {', '.join(known)}; got {shown(got)}{hint}"
