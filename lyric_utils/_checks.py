"""The one validator: arguments of public functions, settings, and what the files of a checkpoint or encoder claim."""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

from lyric_utils._files import LyricsError, describe, visible

LARGEST = 1e3  # that a parameter may be; those of pretrained encoders reach some tens


def _not_text(value: Any) -> Any:
    if isinstance(value, str | bytes | bool):
        raise ValueError("should be a number")
    return value


PathLike = Path  # or a text, as an argument
Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
Whole = Annotated[int, BeforeValidator(_not_text)]
Real = Annotated[float, BeforeValidator(_not_text), Field(allow_inf_nan=False)]
Share = Annotated[Real, Field(ge=0, le=1)]
Level = Annotated[Real, Field(gt=0, lt=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]


def checked(function: Callable) -> Callable:
    """Check the arguments of a function against its annotations, and let no error but `LyricsError` out of it.

    Its message names the file or encoder that the function works on, or else the function.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments, **options):
        place = function.__name__
        try:
            bound = signature.bind(*arguments, **options)
            for name in [name for name in _hints(function) if name in bound.arguments]:
                kind, value = _hints(function)[name], bound.arguments[name]
                bound.arguments[name] = value = validate(kind, value, name)
                place = str(value) if kind in (PathLike, Name) else place
            return function(*bound.args, **bound.kwargs)
        except LyricsError as error:
            if place == function.__name__ or visible(place) in str(error):
                raise
            raise LyricsError(f"{place}: {error}") from error
        except Exception as error:
            place = getattr(error, "filename", None) or place
            raise LyricsError(f"{place}: {describe(error)}.") from error

    return call


@functools.cache
def _hints(function: Callable) -> dict[str, Any]:
    return typing.get_type_hints(function, include_extras=True)


def validate(kind: Any, value: Any, place: str) -> Any:
    """The value as the type says, converted where nothing is lost; else a `LyricsError` that names the place."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), LyricsError):
            raise cause from error
        where = ".".join([place, *(str(part) for part in first["loc"] if "[" not in str(part))])
        found = first["input"]
        found = repr(found) if isinstance(found, str | int | float | None) else f"<{type(found).__name__}>"
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
        raise LyricsError(f"{where}={found[:80]}: {message}.") from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter:
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a dataclass has settings of its own
        return TypeAdapter(kind)


def check_tensors(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless tensors have the expected names, shapes and types, and values of a sensible size."""
    if names := found.keys() ^ expected.keys():
        raise ValueError(f"parameters of another model, which differs in {min(names)!r}")
    for name, values in found.items():
        kinds = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (values, expected[name])]
        if kinds[0] != kinds[1]:
            raise ValueError(f"parameters of another model: {name} is {kinds[0]}, not {kinds[1]}")
        if not (values.abs() <= LARGEST).all():
            raise ValueError(f"{name} holds values that are not finite numbers, or are beyond {LARGEST:,.0f}")
