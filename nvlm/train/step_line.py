"""The terminal's line of a step, and how long the rest will take.

On a terminal it goes on in further lines where it is too wide, and breaks between its parts only; a
file has one line for each step.
"""

from __future__ import annotations

import time
from collections import deque
from statistics import median

from rich.cells import cell_len
from rich.console import Console

# What is less is as good as nothing, and in `metrics.jsonl`: ranks hardly wait for each other, a
# processor without a peak to speak of.
_IMBALANCE_WORTH_SAYING = 1.05
_PADDING_WORTH_SAYING = 0.05
_TFLOPS_WORTH_SAYING = 1.0
# Steps whose seconds say how long the next ones will take.
_RECENT_STEPS = 50
_GAP, _INDENT = "  ", "  "
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


class TimeLeft:
    """How long the rest of a run takes.

    The median of recent steps, which a slow one does not move, and what went by between steps, for
    saving and validation, as a mean since this process began.
    """

    def __init__(self):
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._last_end: float | None = None
        self._between = 0.0
        self._num_gaps = 0

    def add_step(self, seconds: float, now: float | None = None) -> None:
        """A step of so many seconds ends `now`, in seconds of any clock."""
        now = time.perf_counter() if now is None else now
        if self._last_end is not None:
            self._between += max(0.0, now - seconds - self._last_end)
            self._num_gaps += 1
        self._recent.append(seconds)
        self._last_end = now

    def seconds(self, steps: int) -> float:
        """Of `steps` more steps."""
        between = self._between / self._num_gaps if self._num_gaps else 0.0
        return steps * (median(self._recent) + between) if self._recent else 0.0


def print_step(
    console: Console, step: int, steps: int, record: dict[str, float], seconds_left: float
) -> None:
    """Print a step's line, in as many as its terminal's width asks for."""
    parts = step_parts(step, steps, record, seconds_left)
    width = console.width if console.is_terminal else None
    console.print(break_between(parts, width), markup=False, soft_wrap=True)


def step_parts(step: int, steps: int, record: dict[str, float], seconds_left: float) -> list[str]:
    """What the line says of a step, most wanted first; `metrics.jsonl` has all."""
    trained = f"trained {int(record['tokens']):,}"
    if "all_tokens" in record:
        trained += f" of {int(record['all_tokens']):,}"
    parts = [
        f"step {step:>{len(str(steps))}}/{steps}",
        f"loss {record['loss']:.4f}",
        f"grad {record['grad_norm']:.3f}",
        f"lr {record['lr']:.2e}",
        f"{record['seconds']:.2f} s (data {record['data_seconds'] / record['seconds']:.0%})",
    ]
    if "distillation_loss" in record:
        parts.insert(2, f"from teacher {record['distillation_loss']:.4f}")
    if "router/load_balance_loss" in record:
        parts.append(f"balance {record['router/load_balance_loss']:.3f}")
    if step < steps:
        parts.append(f"{spoken_time(seconds_left)} left")
    parts += [f"{trained} tokens", f"tiles {int(record['tiles']):,}"]
    if record["padding"] >= _PADDING_WORTH_SAYING:
        parts.append(f"padding {record['padding']:.0%}")
    parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if record["tflops_per_second"] >= _TFLOPS_WORTH_SAYING:
        parts.append(f"{record['tflops_per_second']:.3g} TFLOP/s")
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record["rank_imbalance"] >= _IMBALANCE_WORTH_SAYING:
        parts.append(f"slowest rank +{record['rank_imbalance'] - 1:.0%}")
    return parts


def break_between(parts: list[str], width: int | None) -> str:
    """The parts in lines of at most `width` columns, further ones indented; None: in one line."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = lines[-1] + _GAP + part
        if width is None or cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_INDENT + part)
    return "\n".join(lines)


def spoken_time(seconds: float) -> str:
    """In its two largest units, such as `2 h 14 min`."""
    rest, words = max(0, round(seconds)), []
    for name, size in _UNITS:
        number, rest = divmod(rest, size)
        if number or words or size == 1:
            words.append(f"{number} {name}")
        if len(words) == 2:
            break
    return " ".join(words)
