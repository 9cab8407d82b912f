"""The terminal's line of a step."""

from __future__ import annotations

# Ranks whose work differs by less than this wait for each other hardly at all.
_WORTH_SAYING = 1.05


def step_line(step: int, steps: int, record: dict[str, float]) -> str:
    return (
        f"step {step:>{len(str(steps))}}/{steps}  loss {record['loss']:.4f}  "
        f"grad {record['grad_norm']:.3f}  lr {record['lr']:.2e}  "
        f"tokens {int(record['tokens']):,}  tiles {int(record['tiles'])}  "
        f"padding {record['padding']:.0%}  {_speed(record)}  "
        f"{record['seconds']:.2f} s (data {record['data_seconds']:.2f} s)"
    )


def _speed(record: dict[str, float]) -> str:
    parts = [f"{record['tokens_per_second']:,.0f} tokens/s"]
    parts.append(f"{record['tflops_per_second']:.3g} TFLOP/s")
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record["rank_imbalance"] >= _WORTH_SAYING:
        parts.append(f"slowest rank +{record['rank_imbalance'] - 1:.0%}")
    return "  ".join(parts)
