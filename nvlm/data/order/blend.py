"""Blending: which source each draw comes from.

Every draw goes to the source that is furthest behind its weight, by Tijdeman's rule (The chairman
assignment problem, Discrete Mathematics 32, 1980): after any number of draws each source has been
drawn within one of its share. A blend inside a blend counts as one source above and follows the
same rule below. A source that has reached its `max_epochs` is used up: from then on the others of
its blend share what it had, and their counts start at zero. All of it is exact integer arithmetic
and a function of the number of draws alone.
"""

from __future__ import annotations

import heapq
import math
from fractions import Fraction

from nvlm.config.schema import DataConfig, SourceConfig


def order_settings(config: DataConfig) -> dict | None:
    """What of `data.blend` decides the order. JSON values only.

    Not in it: `path` (moved data go on; their content is compared) and `loss_weight`.
    """

    def plain(entry: float | SourceConfig) -> float | dict:
        if not isinstance(entry, SourceConfig):
            return float(entry)
        said = entry.model_dump(exclude={"path", "loss_weight", "blend"}, exclude_defaults=True)
        if entry.blend is not None:
            return said | {"blend": {name: plain(inner) for name, inner in entry.blend.items()}}
        return said or entry.weight

    return config.blend and {name: plain(entry) for name, entry in config.blend.items()}


class Blend:
    """The endless sequence of source numbers; it ends when every source is used up."""

    def __init__(
        self,
        config: DataConfig,
        names: list[str],
        sizes: list[int],
        max_epochs: list[float | None],
    ):
        """
        Args:
            names: the sources, each a leaf of `data.blend`, in the order of their numbers.
            sizes: samples of each.
            max_epochs: passes over each after which it is used up.
        """
        self._num_drawn = [0] * len(names)
        # The nearest whole number of samples; at least one.
        self._capacities = [
            math.inf if passes is None else max(1, round(passes * size))
            for size, passes in zip(sizes, max_epochs, strict=True)
        ]
        if config.blend is None:
            children: list[int | _Node] = list(range(len(names)))
            self._root = _Node(children, [Fraction(size) for size in sizes])
        else:
            numbers = {name: number for number, name in enumerate(names)}
            self._root = _build(config.blend, numbers)

    @property
    def num_drawn(self) -> list[int]:
        """Draws per source so far."""
        return list(self._num_drawn)

    def draw(self) -> int | None:
        """The number of the source that the next sample comes from; None when all are used up."""
        path: list[tuple[_Node, int]] = []
        node: int | _Node = self._root
        while isinstance(node, _Node):
            if not node.active:
                return None
            child = node.draw()
            path.append((node, child))
            node = node.children[child]
        self._num_drawn[node] += 1
        if self._num_drawn[node] >= self._capacities[node]:
            for parent, child in reversed(path):
                parent.retire(child)
                if parent.active:
                    break
        return node

    def state(self) -> dict:
        """JSON values only."""
        return {"num_drawn": self.num_drawn, "counts": [n.state() for n in self._root.all_nodes()]}

    def load_state(self, state: dict) -> None:
        self._num_drawn = list(state["num_drawn"])
        for node, saved in zip(self._root.all_nodes(), state["counts"], strict=True):
            node.load_state(saved)

    def start_behind(self, num_drawn: list[int]) -> None:
        """Start with so many draws per source done; shares count from here."""
        self._num_drawn = list(num_drawn)
        self._retire_used_up(self._root)

    def _retire_used_up(self, node: _Node) -> bool:
        """Whether all below `node` is used up."""
        node.active = []
        for number, child in enumerate(node.children):
            if isinstance(child, _Node):
                is_used_up = self._retire_used_up(child)
            else:
                is_used_up = self._num_drawn[child] >= self._capacities[child]
            if not is_used_up:
                node.active.append(number)
        node.counts = [0] * len(node.children)
        node.prepare()
        return not node.active

    def place(self, num_draws: int) -> None:
        """Go to about where `num_draws` draws end: each source within two or so of its count there.

        For estimates over long runs; the draws from here on are those of a true blend.
        """
        self._fill(self._root, num_draws)
        self._retire_used_up(self._root)

    def _fill(self, node: _Node, num_draws: int) -> None:
        """Share `num_draws` out as `draw` would: by weight until a child is full, then again."""
        room = [self._room(child) for child in node.children]
        taken: list[Fraction] = [Fraction(0)] * len(room)
        left = Fraction(num_draws)
        active = [child for child in range(len(room)) if room[child] > 0]
        phase = Fraction(0)
        while active and left > 0:
            total = sum((node.weights[child] for child in active), Fraction(0))
            # Draws until the first of them is full.
            until = [
                (Fraction(room[c]) - taken[c]) * total / node.weights[c]
                for c in active
                if room[c] < math.inf
            ]
            phase = min([left, *until])
            for child in active:
                taken[child] += phase * node.weights[child] / total
            left -= phase
            active = [child for child in active if taken[child] < room[child]]
        for child, number in zip(node.children, taken, strict=True):
            if isinstance(child, _Node):
                self._fill(child, round(number))
            else:
                self._num_drawn[child] = round(number)

    def _room(self, child: int | _Node) -> float:
        if isinstance(child, _Node):
            return sum(self._room(grandchild) for grandchild in child.children)
        return self._capacities[child]


class _Node:
    """A blend: its children are source numbers or blends."""

    def __init__(self, children: list[int | _Node], weights: list[Fraction]):
        self.children = children
        self.weights = weights
        self.active = list(range(len(children)))
        # Draws since the set of active children last changed.
        self.counts = [0] * len(children)
        self.prepare()

    def prepare(self) -> None:
        """Whole-number weights of the active children, and when each may be drawn next."""
        denominator = math.lcm(*(self.weights[child].denominator for child in self.active), 1)
        self._integers = {c: int(self.weights[c] * denominator) for c in self.active}
        self._total = sum(self._integers.values())
        self._ready: list[tuple[int, int]] = []  # (last draw in time, child)
        self._waiting: list[tuple[int, int]] = []  # (first draw allowed, child)
        if len(self.active) > 1:
            for child in self.active:
                heapq.heappush(self._waiting, (self._first_draw(child), child))
        self._number = sum(self.counts)

    def draw(self) -> int:
        """Of the children that may be drawn now, the one whose turn ends first."""
        self._number += 1
        if len(self.active) == 1:
            child = self.active[0]
            self.counts[child] += 1
            return child
        while self._waiting and self._waiting[0][0] <= self._number:
            child = heapq.heappop(self._waiting)[1]
            heapq.heappush(self._ready, (self._last_draw(child), child))
        last, child = heapq.heappop(self._ready)
        assert last >= self._number, "every child is drawn in time"
        self.counts[child] += 1
        heapq.heappush(self._waiting, (self._first_draw(child), child))
        return child

    # With k children, total weight W and the margin 1/(2k-2): a child of weight w that has c draws
    # may be drawn at t where t w/W - c >= margin, and not left out where t w/W - c > 1 - margin.

    def _first_draw(self, child: int) -> int:
        scale = 2 * len(self.active) - 2
        wanted = self._total * (self.counts[child] * scale + 1)
        return -(-wanted // (self._integers[child] * scale))

    def _last_draw(self, child: int) -> int:
        scale = 2 * len(self.active) - 2
        wanted = self._total * (self.counts[child] * scale + scale - 1)
        return wanted // (self._integers[child] * scale) + 1

    def retire(self, child: int) -> None:
        """`child` is used up: the others share from here on."""
        self.active.remove(child)
        self.counts = [0] * len(self.children)
        self.prepare()

    def all_nodes(self) -> list[_Node]:
        nodes: list[_Node] = [self]
        for child in self.children:
            if isinstance(child, _Node):
                nodes += child.all_nodes()
        return nodes

    def state(self) -> list[list[int]]:
        return [self.active, list(self.counts)]

    def load_state(self, state: list[list[int]]) -> None:
        self.active, self.counts = list(state[0]), list(state[1])
        self.prepare()


def _build(blend: dict[str, float | SourceConfig], numbers: dict[str, int]) -> _Node:
    children: list[int | _Node] = []
    weights = []
    for name, entry in blend.items():
        settings = _settings(entry)
        inner = settings.blend
        children.append(numbers[name] if inner is None else _build(inner, numbers))
        # As written: 0.1 is a tenth.
        weights.append(Fraction(repr(settings.weight)))
    return _Node(children, weights)


def _settings(entry: float | SourceConfig) -> SourceConfig:
    return entry if isinstance(entry, SourceConfig) else SourceConfig(weight=entry)
