"""The order of samples: a pure function of (seed, blend, position), the same on every rank.

windows.py draws and packs samples, from the index only. Here the packs of several global steps are
dealt out so that those of a step cost about the same (balance.py): a step group. The state is where
the current one began and how many of its steps were taken: small, JSON, and independent of
processes and workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nvlm.batch import SkippedSample
from nvlm.config import RunConfig
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.order.balance import deal_out, num_steps_together
from nvlm.data.order.draws import Draw, Integers, Pack
from nvlm.data.order.fingerprint import check_same, data_fingerprint, differences
from nvlm.data.order.lengths import PlannedSource
from nvlm.data.order.windows import PackStream
from nvlm.sizes.flops import step_flops


class Planner:
    """The sequence of global steps of a run.

    Raises:
        DataError: a source of the run has no sample, or none of a window's samples fits.
    """

    def __init__(self, config: RunConfig, indexes: list[SourceIndex]):
        self._config = config
        self.fingerprint = data_fingerprint(config, indexes)
        self.sources = [PlannedSource(config, index.settings, index) for index in indexes]
        self._flops = step_flops(config)
        self._stream = PackStream(config, self.sources)
        # Packs planned for the next step group: where their first window starts, how many of its
        # packs the group before has, and for each window its packs and where the next one starts.
        self._origin = {"window": self._stream.state(), "num_packs_before": 0, "group": 0}
        self._windows: list[tuple[list[Pack], dict]] = []
        self._num_ahead = 0
        self._has_ended = False
        # The current step group.
        self._step_group_origin = self._origin
        self._steps: list[list[Pack]] = []
        self._num_taken = 0
        # Draws of each source in the steps taken.
        self._num_used = self._count([])

    def next_step(self) -> list[Pack] | None:
        """The packs of the next global step, `train.global_batch_size`; None when data have ended.

        Only `max_epochs` ends the data. The packs that are left fill the last step up with empty
        ones.
        """
        if self._num_taken == len(self._steps):
            self._start_step_group()
            if not self._steps:
                return None
        self._num_taken += 1
        self._num_used += self._count(self._steps[self._num_taken - 1])
        # A share of the next group, so that no step waits for all of it.
        self._plan_ahead(self._num_taken * self._config.train.global_batch_size)
        return self._steps[self._num_taken - 1]

    def state(self) -> dict:
        """Where the next step stands. JSON values only."""
        return {
            "fingerprint": self.fingerprint,
            **self._step_group_origin,
            "num_steps_taken": self._num_taken,
        }

    def load_state(self, state: dict) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: it belongs to other data or settings; the message shows the difference.
        """
        check_same(self.fingerprint, state["fingerprint"])
        self._go_to({key: state[key] for key in ("window", "num_packs_before", "group")})
        if state["num_steps_taken"]:
            self._start_step_group()
            self._num_taken = state["num_steps_taken"]
            for step in self._steps[: self._num_taken]:
                self._num_used += self._count(step)
            self._plan_ahead(self._num_taken * self._config.train.global_batch_size)

    def changes_since(self, state: dict) -> list[str]:
        """What differs from the data and settings of `state`, and where each source continues."""
        changes = differences(state["fingerprint"], self.fingerprint)
        if not changes:
            return []
        sizes = {source.index.source: len(source.index) for source in self.sources}
        places = [
            f"source {name} continues at sample {number % sizes[name]:,} of pass "
            f"{number // sizes[name] + 1}"
            if number
            else f"source {name} begins at its first sample"
            for name, number in _kept_positions(self.fingerprint, state).items()
        ]
        return changes + places

    def continue_from(self, state: dict) -> None:
        """Go on from a position in other data or settings.

        A source that has the same samples in the same order continues after what was drawn from it
        when the step group that `state` lies in began, so a few of its samples may come again
        in this pass. All others begin at their first sample, and the blend's shares are counted
        from zero.
        """
        kept = _kept_positions(self.fingerprint, state)
        self._stream.start_behind([kept[source.index.source] for source in self.sources])
        self._go_to({"window": self._stream.state(), "num_packs_before": 0, "group": 0})

    def place(self, num_draws: float) -> int:
        """Go to about where so many samples were drawn, for estimates over long runs.

        Returns how many it is: fewer where every source is used up before.
        """
        self._stream.place(round(num_draws))
        self._go_to({"window": self._stream.state(), "num_packs_before": 0, "group": 0})
        return sum(self.num_drawn)

    def skipped(self, draw: Draw) -> SkippedSample:
        """A dropped draw, as the user reads it."""
        return self._stream.skipped(draw)

    def key(self, draw: Draw) -> str:
        index = self.sources[draw.source].index
        return f"{index.source}/{index.key(draw.row)}"

    @property
    def num_drawn(self) -> list[int]:
        """Draws per source that were planned so far, in the order of `sources`."""
        return self._stream.num_drawn

    def epochs(self) -> dict[str, float]:
        """Every source, in the order of `sources` -> passes over it in the steps taken.

        Samples that were left out count. It follows from the state, wherever that was taken.
        """
        return {
            source.index.source: float(number / len(source.index))
            for source, number in zip(self.sources, self._num_used, strict=True)
        }

    def cost(self, pack: Pack) -> int:
        """What training on a pack computes; see balance.py."""
        return self._flops.of_sequence(
            pack.draws.length.tolist(),
            int(pack.draws.num_tiles.sum()),
            self._config.stage.sequence_length,
        )

    def _go_to(self, origin: dict) -> None:
        self._stream.load_state(origin["window"])
        self._origin = self._step_group_origin = origin
        self._windows, self._steps = [], []
        self._num_ahead = -origin["num_packs_before"]
        self._num_taken, self._has_ended = 0, False

    def _start_step_group(self) -> None:
        batch = self._config.train.global_batch_size
        num_wanted = batch * num_steps_together(batch)
        self._plan_ahead(num_wanted)
        packs = self._take_ahead(num_wanted)
        group = self._step_group_origin["group"]
        self._num_taken = 0
        if self._config.stage.packing:
            costs = [self.cost(pack) for pack in packs]
            numbers = deal_out(costs, batch, self._config.train.seed, "group", group)
        else:
            # Samples keep the order in which they were drawn.
            starts = range(0, len(packs), batch)
            numbers = [list(range(len(packs)))[start : start + batch] for start in starts]
        steps = [[packs[i] for i in step] for step in numbers]
        # The last step of the data is filled up with empty packs.
        self._steps = [step + [step[0].emptied()] * (batch - len(step)) for step in steps]

    def _count(self, packs: list[Pack]) -> Integers:
        """[sources] draws of each source."""
        num_sources = len(self.sources)
        none = np.zeros(num_sources, np.int64)
        return sum((pack.count_sources(num_sources) for pack in packs), start=none)

    def _plan_ahead(self, num_packs: int) -> None:
        """Plan windows until so many packs stand ready for the next group, or data have ended."""
        while self._num_ahead < num_packs and not self._has_ended:
            window = self._stream.next_window()
            if window is None:
                self._has_ended = True
            else:
                self._windows.append((window, self._stream.state()))
                self._num_ahead += len(window)

    def _take_ahead(self, num_packs: int) -> list[Pack]:
        """Up to so many packs for a new step group; the one after it begins after them."""
        origin = self._step_group_origin = self._origin
        before = origin["num_packs_before"]
        packs = [pack for window, _ in self._windows for pack in window]
        window_state = origin["window"]
        carried = np.array([source for source, *_ in window_state["carried"]], np.int64)
        self._num_used = np.array(window_state["blend"]["num_drawn"], np.int64)
        self._num_used -= np.bincount(carried, minlength=len(self.sources))
        self._num_used += self._count(packs[:before])
        packs = packs[before : before + num_packs]
        self._num_ahead -= len(packs)
        start, before = origin["window"], before + len(packs)
        while self._windows and before >= len(self._windows[0][0]):
            window, start = self._windows.pop(0)
            before -= len(window)
        self._origin = {
            "window": start,
            "num_packs_before": before,
            "group": origin["group"] + 1,
        }
        return packs


def _kept_positions(current: dict, state: dict) -> dict[str, int]:
    """Draws that each source continues after, when the data or settings have changed."""
    saved = state["fingerprint"]
    if any(saved.get(key) != current[key] for key in ("train.seed", "order_version")):
        return dict.fromkeys(current["sources"], 0)
    num_drawn = dict(zip(sorted(saved["sources"]), state["window"]["blend"]["num_drawn"]))
    return {
        name: num_drawn[name] if saved["sources"].get(name) == content else 0
        for name, content in current["sources"].items()
    }


def iterate_order(
    config: RunConfig, num_steps: int, state: dict | None = None
) -> Iterator[tuple[int, list[list[str]]]]:
    """(step from 1, sample keys of each pack of the global step), without reading images."""
    planner = Planner(config, open_indexes(config))
    if state is not None:
        planner.load_state(state)
    for step in range(1, num_steps + 1):
        packs = planner.next_step()
        if packs is None:
            return
        yield step, [[planner.key(draw) for draw in pack.draws] for pack in packs]
