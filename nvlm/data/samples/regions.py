"""Places in an image as text: `<box>(x0,y0),(x1,y1)</box>` or `<quad>(x,y),...</quad>`.

Coordinates are written as they are stored (paper appendix E): pixels or thousandths, as the data
has them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown, text_without_marks

# No image is so large; what is beyond is damage.
_MAX_COORDINATE = 1_000_000


class Region(NamedTuple):
    """A text and its place."""

    text: str
    place: str  # <box>...</box> or <quad>...</quad>

    def grounded(self) -> str:
        return f"<ref>{self.text}</ref>{self.place}"


def read_regions(value: Any) -> list[Region]:
    """The regions of a sample.

    Raises:
        SampleError: not a list of `{"text": ..., "box" or "quad": ...}`, or a place that is none.
    """
    if not isinstance(value, list) or not value:
        raise SampleError("region", f"regions is {shown(value)}, expected a list of regions")
    return [_read_region(number, item) for number, item in enumerate(value)]


def _read_region(number: int, item: Any) -> Region:
    name = f"region {number}"
    if not isinstance(item, dict) or ("box" in item) == ("quad" in item):
        raise SampleError("region", f"{name} is {shown(item)}, expected text and one of box, quad")
    text = text_without_marks(item.get("text"), name)
    if "quad" in item:
        points = _read_numbers(item["quad"], 8, f"quad of {name}")
        return Region(text, f"<quad>{_points(points)}</quad>")
    left, top, right, bottom = points = _read_numbers(item["box"], 4, f"box of {name}")
    if right <= left or bottom <= top:
        raise SampleError(
            "region", f"box of {name} is {shown(item['box'])}: its second corner must be right of "
            "and below the first"
        )  # fmt: skip
    return Region(text, f"<box>{_points(points)}</box>")


def _read_numbers(value: Any, count: int, name: str) -> list[float]:
    if isinstance(value, list) and value and all(isinstance(point, list) for point in value):
        value = [number for point in value for number in point]
    if not isinstance(value, list) or len(value) != count:
        raise SampleError("region", f"{name} is {shown(value)}, expected {count} numbers")
    for number in value:
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not 0 <= number <= _MAX_COORDINATE:
            raise SampleError(
                "region", f"{name} has {shown(number)}, expected numbers from 0 to "
                f"{_MAX_COORDINATE}"
            )  # fmt: skip
    return value


def _points(numbers: list[float]) -> str:
    texts = [str(int(number) if number == int(number) else number) for number in numbers]
    return ",".join(f"({x},{y})" for x, y in zip(texts[::2], texts[1::2], strict=True))
