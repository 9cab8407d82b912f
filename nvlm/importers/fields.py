"""An object of a source, whose fields are taken one by one: what is left was not used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown
from nvlm.importers.spellings import ID_FIELDS, IMAGES, MEANINGS, REFUSED, plain

# Values are looked at no deeper for whether they say anything.
_MAX_DEPTH = 4
_MAX_NAMES_SHOWN = 8
_MAX_NAME = 200  # characters, in lists


class Fields:
    """The fields that say something, by their plain names; null and empty ones do not count.

    Attributes:
        place: of the object in its sample, such as `messages.`; the sample itself has "".
    """

    def __init__(self, value: dict[Any, Any], place: str = ""):
        """Raises `SampleError` if two names differ only in capitals and the like."""
        self.place = place
        self._left: dict[str, tuple[str, Any]] = {}
        for name, content in value.items():
            if is_nothing(content):
                continue
            if (key := plain(name)) in self._left:
                other = self._left[key][0]
                raise SampleError("fields", f"{place}{other} and {place}{name} are one field twice")
            self._left[key] = (str(name), content)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def __iter__(self) -> Iterator[str]:
        """The plain names of what is left."""
        return iter(list(self._left))

    def found(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are there, in their order."""
        if self._left.keys().isdisjoint(names):
            return []
        return [name for name in names if name in self._left]

    def look(self, name: str) -> Any:
        return self._left[name][1] if name in self._left else None

    def name(self, name: str) -> str:
        """As the source writes it, with its place."""
        return self.place + self._left[name][0]

    def take(self, name: str) -> Any:
        return self._left.pop(name)[1]

    def take_one(self, names: Iterable[str]) -> tuple[str, Any]:
        """(plain name, value) of the one of `names` that is there; ("", None) if none is.

        Raises:
            SampleError: there are several, and they do not say the same.
        """
        found = self.found(names)
        for other in found[1:]:
            if self.look(other) != self.look(found[0]):
                raise SampleError(
                    "fields",
                    f"{self.name(found[0])} and {self.name(other)} say different things, and which "
                    "is meant is not known; keep one",
                )
        values = [self.take(name) for name in found]
        return (found[0], values[0]) if found else ("", None)

    def refuse(self) -> None:
        """Raise `SampleError` if there is a field that may not be left out, and has no use."""
        for name in self.found(REFUSED):
            if self.look(name) is False:
                self.take(name)
                continue
            raise SampleError(
                "fields", f"{self.name(name)} is {shown(self.look(name))}: {REFUSED[name]}"
            )

    def leave(self, main: str) -> list[str]:
        """The names of what is left, to be listed after the import.

        Args:
            main: what was used, for the message.

        Raises:
            SampleError: something is left that decides what is trained.
        """
        for name, (_, value) in self._left.items():
            meaning = MEANINGS.get(name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            # Numbers of classes.
            if meaning is None or (meaning == "answer" and is_number):
                continue
            raise SampleError(
                "fields",
                f"{self.name(name)} ({meaning}) has no use beside {main}, and leaving it out would "
                "change the sample; remove one of them",
            )
        return [self.place + original[:_MAX_NAME] for original, _ in self._left.values()]

    def describe(self) -> str:
        """What there is, with the names that may be meant."""
        known = [*MEANINGS, *ID_FIELDS, *IMAGES]
        names = []
        for key, (name, _) in list(self._left.items())[:_MAX_NAMES_SHOWN]:
            near = difflib.get_close_matches(key[:60], known, 1, 0.75) if key not in known else []
            names.append(f"{name[:60]} (is {near[0]} meant?)" if near else name[:60])
        return ", ".join(names) or "nothing"


def is_nothing(value: Any, depth: int = 0) -> bool:
    """Whether a field says as little as if it were not there: null, "", or lists of such."""
    if value is None or value == "":
        return True
    if depth == _MAX_DEPTH or not isinstance(value, (list, dict)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return all(is_nothing(item, depth + 1) for item in items)
