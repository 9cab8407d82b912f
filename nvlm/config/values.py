"""The kinds of values that keys take, each with the words that say what it must be.

Files and overrides arrive as the texts that were written (nvlm/config/yaml_file.py), saved
configurations as numbers: both are read here. Nothing is taken for something else: `true` is not 1,
`010` neither 8 nor 10, 5.0 is not a number of steps.
"""

from __future__ import annotations

import math
import os
import re
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer
from pydantic_core import PydanticCustomError

_DIGITS = r"(?:0|[1-9]\d*(?:_\d+)*)"
_WHOLE = re.compile(rf"[-+]?{_DIGITS}")
_FLOAT = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s?(s|min|h)")
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_LEADING_ZERO = re.compile(r"[-+]?0\d+")
_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# What `len(str(value))` digits may be converted without further looking.
_MAX_DIGITS = 400
LARGEST = 2**31 - 1
# Tags of larger grids are not measured ahead (nvlm/data/index/source_index.py).
MAX_NUM_TILES = 128


def _read_whole(value: Any, low: int, high: int) -> int:
    number = None
    hint = ""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and len(value) < _MAX_DIGITS and value.isascii():
        if _WHOLE.fullmatch(value):
            number = int(value)
        elif _LEADING_ZERO.fullmatch(value):
            hint = " without leading zeros"
    if number is not None and low <= number <= high:
        return number
    words = f"a whole number{hint} from {low} to {high}"
    if high == LARGEST and (number is None or number < low):
        words = f"a whole number{hint} of at least {low}"
    raise _wrong(words)


def _read_number(
    value: Any, low: float, high: float, low_is_in: bool = True, high_is_in: bool = True
) -> float:
    number = None
    hint = ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e300 else math.inf
    elif isinstance(value, str) and len(value) < _MAX_DIGITS and value.isascii():
        if _FLOAT.fullmatch(value):
            number = float(value)
        elif _LEADING_ZERO.fullmatch(value):
            hint = " without leading zeros"
    if (
        number is not None
        and (low <= number if low_is_in else low < number)
        and (number <= high if high_is_in else number < high)
    ):
        return number
    words = f"a number{hint} {'of at least' if low_is_in else 'greater than'} {low:g}"
    if number is None or number > low or high < 1000:
        words += f" and {'at most' if high_is_in else 'less than'} {high:g}"
    raise _wrong(words)


def _read_switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _SWITCH:
        return _SWITCH[value.lower()]
    raise _wrong("true or false")


def _read_deepstack(value: Any) -> str:
    """Before it could be `tiles` this was a switch."""
    if isinstance(value, str) and value in ("none", "levels", "tiles"):
        return value
    try:
        return "levels" if _read_switch(value) else "none"
    except PydanticCustomError:
        raise _wrong("none, levels or tiles") from None


def _read_interval(value: Any) -> int | str:
    if isinstance(value, str) and seconds_of(value.strip()) is not None:
        return value.strip()
    try:
        return _read_whole(value, 1, LARGEST)
    except PydanticCustomError:
        raise _wrong("a number of steps of at least 1, or a time such as 30min or 2h") from None


def seconds_of(interval: int | str) -> float | None:
    """Of a time such as `30min`; None: it is a number of steps."""
    match = _TIME.fullmatch(interval) if isinstance(interval, str) else None
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    return seconds if 0 < seconds < 1e9 else None


def _read_shuffle_factor(value: Any) -> int:
    try:
        number = _read_whole(value, 1, 4)
    except PydanticCustomError:
        number = 3
    if number == 3:
        raise _wrong("1 (nothing is merged), 2 or 4")
    return number


def _read_stage_layers(value: Any) -> Any:
    if isinstance(value, str) and value in ("even", "auto"):
        return value
    try:
        if isinstance(value, list) and value:
            if all(isinstance(row, list) and row for row in value):
                return [[_read_whole(item, 0, 10_000) for item in row] for row in value]
            return [_read_whole(item, 0, 10_000) for item in value]
    except PydanticCustomError:
        pass
    raise _wrong(
        "even, auto or the decoder layers of each pipeline stage, such as [14, 22, 22, 22], and "
        "with virtual stages those of each chunk, such as [[6, 8], [11, 11]]"
    )


def _check_text(value: str) -> str:
    if any(not (c.isprintable() or c in "\n\t") and ord(c) < 0xA0 for c in value):
        raise _wrong("a text without control characters")
    return value


def _check_name(value: str) -> str:
    if not value.strip():
        raise _wrong("a text that is not empty")
    if not value.isprintable():
        raise _wrong("a text of one line, without control characters")
    if len(value) > 4000:
        raise _wrong("a text of at most 4000 characters")
    if "${" in value:
        raise _wrong("written out (values of other keys are not put in)")
    return value


def _check_folder_name(value: str) -> str:
    if "/" in _check_name(value) or value in (".", ".."):
        raise _wrong("the name of a folder, without `/`")
    return value


def _check_path(value: str) -> str:
    _check_name(value)
    longest = max(len(os.fsencode(part)) for part in value.split("/"))
    if longest > 255 or len(os.fsencode(value)) > 4000:
        raise _wrong("a path that a file system can hold")
    return value


def _wrong(expected: str) -> PydanticCustomError:
    return PydanticCustomError("wrong_value", f"must be {expected}")  # type: ignore[arg-type]


def _whole(low: int, high: int = LARGEST) -> BeforeValidator:
    return BeforeValidator(partial(_read_whole, low=low, high=high))


def _number(low: float, high: float, **ends: bool) -> BeforeValidator:
    return BeforeValidator(partial(_read_number, low=low, high=high, **ends))


Count = Annotated[int, _whole(1)]
CountOrZero = Annotated[int, _whole(0)]
# Layers are listed by name, tiles by their tags.
NumLayers = Annotated[int, _whole(1, 10_000)]
# Counted from the last, which is -1.
FeatureLayer = Annotated[int, _whole(-10_000, -1)]
# A list to all who read or write it; `model` is a key of caches, so that nothing of it may change.
FeatureLayers = Annotated[tuple[FeatureLayer, ...], PlainSerializer(list)]
# Patches along each side of what pixel shuffle merges.
ShuffleFactor = Annotated[int, BeforeValidator(_read_shuffle_factor)]
# Even, cut by cost, or decoder layers of each pipeline stage or of each stage's chunks.
StageLayers = Annotated[
    Literal["even", "auto"] | list[int] | list[list[int]], BeforeValidator(_read_stage_layers)
]
# Steps, or a time: see `seconds_of`.
Interval = Annotated[int | str, BeforeValidator(_read_interval)]
NumTiles = Annotated[int, _whole(1, MAX_NUM_TILES)]
NumWorkers = Annotated[int, _whole(0, 1024)]
# numpy's generators take 32 bits.
Seed = Annotated[int, _whole(0, 2**32 - 1)]
# Sums and products of some thousands of these are still finite.
Positive = Annotated[float, _number(0, 1e40, low_is_in=False)]
PositiveOrZero = Annotated[float, _number(0, 1e40)]
# From 0, below 1.
Decay = Annotated[float, _number(0, 1, high_is_in=False)]
Share = Annotated[float, _number(0, 1, low_is_in=False)]
Switch = Annotated[bool, BeforeValidator(_read_switch)]
DeepStack = Annotated[Literal["none", "levels", "tiles"], BeforeValidator(_read_deepstack)]
# Several lines where wanted.
Text = Annotated[str, AfterValidator(_check_text)]
Name = Annotated[str, AfterValidator(_check_name)]
FolderName = Annotated[str, AfterValidator(_check_folder_name)]
# `~` and `$NAME` stand for what they mean to a shell, `./` for the folder of the file that says so:
# nvlm/config/layers.py finds such keys by this very validator.
PATH = AfterValidator(_check_path)
PathText = Annotated[str, PATH]
