"""Which attention a model's layers get on which GPU: torch's or Transformer Engine's, and why.

Transformer Engine picks a kernel at every call, and where none fits it takes an unfused one, which
holds a matrix of all pairs of tokens and says nothing. So what it can do is decided here, before.

Sources: Transformer Engine 2.9 to 2.11, `nvte_get_fused_attn_backend` in
common/fused_attn/fused_attn.cpp (cuDNN) and `get_attention_backend` in
pytorch/attention/dot_product_attention/utils.py. This file imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.platform.machine import Machine

# What the newest flash-attn is that versions of Transformer Engine take.
_NEWEST_FLASH_ATTN = {(2, 9): (2, 8, 1), (2, 10): (2, 8, 3), (2, 11): (2, 8, 3)}
# Versions of cuDNN whose attention is known to be wrong.
_BROKEN_CUDNN = ((9, 10, 0), (9, 10, 1))


@dataclass(frozen=True)
class Attention:
    """`implementation` is `torch` or `transformer_engine`; the rest is for people."""

    implementation: str
    kernel: str
    reason: str = ""


def choose_attention(
    machine: Machine,
    layers: str,
    precision: str,
    to_generate: bool = False,
    sees_both_ways: bool = False,
    attention_dropout: float = 0.0,
) -> Attention:
    """The attention of the decoder's packed documents, and of the encoder with it.

    Args:
        layers: `local` or `transformer_engine`.
        precision: `train.precision`.
        to_generate: for answering with a cache instead of training.
        sees_both_ways: `model.visual_attention` is bidirectional.
        attention_dropout: `train.attention_dropout`.
    """
    if layers == "local":
        return Attention("torch", "torch, document by document")
    if to_generate:
        return Attention(
            "torch", "torch", "cuDNN would make a new plan for each length that the cache gets"
        )
    if sees_both_ways:
        return Attention(
            "torch",
            "torch, document by document",
            "no kernel of Transformer Engine is causal for text and not within images",
        )
    if attention_dropout:
        return Attention(
            "torch",
            "torch, document by document",
            "which kernels of Transformer Engine have dropout over packed documents is not known",
        )
    if not machine.has_gpu:  # its modules, without its kernels
        return Attention("transformer_engine", "Transformer Engine")
    if precision == "fp32":
        return Attention(
            "torch",
            "torch, document by document",
            "Transformer Engine has no fused attention over packed documents in fp32",
        )
    without_cudnn, without_flash = _why_no_cudnn(machine), _why_no_flash_attn(machine)
    if not without_cudnn:
        return Attention("transformer_engine", "cuDNN through Transformer Engine")
    if not without_flash:
        return Attention(
            "transformer_engine", "flash-attn through Transformer Engine", without_cudnn
        )
    return Attention("torch", "torch, document by document", f"{without_cudnn}; {without_flash}")


def _why_no_cudnn(machine: Machine) -> str:
    capability, version = machine.capability or (0, 0), ".".join(map(str, machine.cudnn))
    if machine.environment.get("NVTE_FUSED_ATTN") == "0":
        return "NVTE_FUSED_ATTN is 0"
    if capability < (9, 0) or capability == (12, 0):
        return f"cuDNN has no attention over packed documents for {_name(capability)}"
    if machine.cudnn in _BROKEN_CUDNN:
        return f"cuDNN {version} has a fault in its attention"
    oldest = (9, 6) if capability < (10, 0) else (9, 7)
    if machine.cudnn < oldest:
        return (
            f"attention over packed documents needs cuDNN {'.'.join(map(str, oldest))}, and "
            f"{version or 'none'} was found"
        )
    return ""


def _why_no_flash_attn(machine: Machine) -> str:
    capability = machine.capability or (0, 0)
    if machine.environment.get("NVTE_FLASH_ATTN") == "0":
        return "NVTE_FLASH_ATTN is 0"
    if capability == (9, 0) and machine.has("flash_attn_3"):
        return ""
    if not machine.has("flash_attn"):
        return "flash-attn is not installed"
    if capability < (8, 0):
        return f"flash-attn does not run on {_name(capability)}"
    oldest = (2, 1, 1) if capability < (10, 0) else (2, 7, 3)
    newest = max(
        (
            flash
            for engine, flash in _NEWEST_FLASH_ATTN.items()
            if machine.has("transformer_engine", *engine)
        ),
        default=min(_NEWEST_FLASH_ATTN.values()),
    )
    if not machine.has("flash_attn", *oldest) or machine.version("flash_attn") > newest:
        wanted = " to ".join(".".join(map(str, limit)) for limit in (oldest, newest))
        return (
            f"Transformer Engine takes flash-attn {wanted} here, and "
            f"{machine.packages['flash_attn']} is installed"
        )
    return ""


def _name(capability: tuple[int, int]) -> str:
    return f"sm{capability[0]}{capability[1]}"
