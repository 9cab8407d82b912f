"""What messages between ranks cost.

Megatron-core numbers the ranks along the tensor axis first, then context, data and pipeline. So a
group's ranks are apart by the sizes of the axes before it, and what of a group shares a node
follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvlm.plan.assumptions import Assumptions


@dataclass(frozen=True)
class Group:
    """Ranks that talk along one axis of the layout, and what joins them.

    bandwidth: bytes per second of each rank, in rings around the group.
    latency: seconds of a message between two of them.
    """

    size: int
    bandwidth: float
    latency: float

    @property
    def _hops(self) -> float:
        return math.ceil(math.log2(self.size)) * self.latency if self.size > 1 else 0.0

    def gather_seconds(self, num_bytes: float) -> float:
        """Of an all-gather or a reduce-scatter; `num_bytes` of the whole tensor."""
        return (self.size - 1) / self.size * num_bytes / self.bandwidth + self._hops

    def reduce_seconds(self, num_bytes: float) -> float:
        """Of an all-reduce: both, one after the other."""
        return 2 * self.gather_seconds(num_bytes)

    def send_seconds(self, num_bytes: float) -> float:
        """From one rank to the next."""
        return 0.0 if self.size == 1 else num_bytes / self.bandwidth + self.latency


def group(size: int, stride: int, assumptions: Assumptions) -> Group:
    """A group of `size` ranks, each `stride` after the one before."""
    per_node = int(assumptions["gpus_per_node"])
    link = assumptions["link_bandwidth"] * assumptions["link_efficiency"]
    if (size - 1) * stride < per_node and (per_node % stride == 0 or size == 1):
        return Group(size, link, assumptions["link_latency"])
    # Rings enter a node at each of the group's ranks there, so each of their ports carries a share.
    on_a_node = max(1, min(size, per_node // stride))
    network = assumptions["network_bandwidth"] * assumptions["network_efficiency"] * on_a_node
    return Group(size, min(link, network), assumptions["network_latency"])


def neighbour_group(size: int, stride: int, assumptions: Assumptions) -> Group:
    """Pipeline stages: a message goes to one neighbour, through the own port alone."""
    if size * stride <= int(assumptions["gpus_per_node"]):
        return group(size, stride, assumptions)
    network = assumptions["network_bandwidth"] * assumptions["network_efficiency"]
    return Group(size, network, assumptions["network_latency"])
