"""An HTML page as a tree of elements, by the standard library's parser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "img", "br"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, wanted: Callable[[Element], bool] = lambda _: True) -> Iterator[Element]:
        """The elements below this one, in order."""
        for child in self.children:
            if isinstance(child, Element):
                if wanted(child):
                    yield child
                yield from child.all(wanted)

    def with_class(self, name: str) -> list[Element]:
        return list(self.all(lambda element: name in element.classes))

    def with_tag(self, tag: str) -> list[Element]:
        return list(self.all(lambda element: element.tag == tag))


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def parse_page(page: str) -> Element:
    """Raises `AssertionError` where tags are not closed in order."""
    builder = _Builder()
    builder.feed(page)
    builder.close()
    assert builder._open == [builder.root], f"open at the end: {builder._open[-1].tag}"
    return builder.root
