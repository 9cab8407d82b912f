"""What the program asks of the device that it runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from nvlm.platform.flight_recorder import Collective
    from nvlm.platform.machine import Machine

# What processes talk through that compute on no device.
HOST_BACKEND = "gloo"


@dataclass(frozen=True)
class Copies:
    """Copies that are under way.

    hold: to be called before what is copied is written to; then this waits, or the device does.
    wait: returns when all is copied; to be called once, by another thread, which may have to copy.
    """

    hold: Callable[[], object]
    wait: Callable[[], object]


class Platform(Protocol):
    """One module per kind of device has these functions and no others (pyright checks them)."""

    def activate(self) -> None:
        """Make this process ready to import Megatron-core; safe to call again."""

    def device(self) -> torch.device:
        """Where this process's tensors are."""
        ...

    def device_name(self) -> str:
        """The device in words, for a line of the start-up."""
        ...

    def machine(self) -> Machine:
        """What was found here, for the decisions of `nvlm.platform.features`."""
        ...

    def facts(self) -> dict[str, str]:
        """What people want to know of this machine's devices, by name."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""

    def distributed_backend(self) -> str:
        """What torch.distributed talks through."""
        ...

    def bind_local_rank(self, local_rank: int) -> None:
        """Take the device that belongs to this process, the `local_rank`-th of its machine."""

    def resolve_layer_implementation(self, wanted: str, precision: str) -> str:
        """`local` or `transformer_engine`, for `model.layer_implementation` and `train.precision`.

        Raises:
            ConfigError: what is asked for cannot be had on this machine.
        """
        ...

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """A host tensor's values in memory from which copies to the device are not waited for.

        Other tensors stay as they are."""
        ...

    def copied_ahead(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to copy a host tensor to the device, beside what that computes, from any thread.

        What this returns is called once, by the thread that computes with the copy: it gives it,
        for all that is asked of the device from then on.
        """
        ...

    def moment(self) -> Any:
        """When the device has done what it was asked for so far; nothing is waited for."""
        ...

    def seconds_between(self, first: Any, second: Any) -> float:
        """Of two moments that have come: the host has waited for what was asked for after them."""
        ...

    def host_buffer(self, num_bytes: int) -> torch.Tensor:
        """Bytes on the host to which copies from the device run beside the program."""
        ...

    def copy_beside(self, copy: Callable[[], None]) -> Copies:
        """Let `copy`, which copies what the device has computed, run while the program goes on."""
        ...

    def join_thread(self) -> None:
        """Make a further thread of this process ready to call torch and Megatron-core."""

    def release_memory(self) -> None:
        """Give back what freed tensors leave behind, and count the peak anew where it can be."""

    def peak_memory_bytes(self) -> int:
        """Most memory that this process has had: the device's, or on a CPU the resident one."""
        ...

    def free_memory_bytes(self) -> int:
        """What this process can still take: of the device, or of a CPU's memory its share."""
        ...

    def last_collectives(self) -> list[Collective]:
        """The last collective that this process issued in each group, the latest of all last.

        May be asked by any thread while another one waits in a collective."""
        ...
