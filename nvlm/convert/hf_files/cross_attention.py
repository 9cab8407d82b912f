"""Gated cross-attention between self-attention and MLP of a decoder's layer, and what it reads.

Shape suffixes: b prompts, t tokens, k tokens beside, h heads, d channels per head.
"""

import torch
from torch import nn
from torch.nn import functional


class Reading:
    """What the tokens of the prompts in hand see beside them; the same for all layers.

    Args:
        rows_bkc: embeddings of the tokens beside, as many as the longest has.
        sees_btk: bool; which of them each token of the prompts sees.
        follows_bk: bool; which of them all later tokens see.
    """

    def __init__(self, rows_bkc, sees_btk, follows_bk):
        self.rows_bkc = rows_bkc
        self.sees_btk = sees_btk
        self.follows_bk = follows_bk
        self.num_read = 0  # tokens before those in hand
        self.in_hand = None  # [b, tokens in hand, k]
        self.keys_and_values = {}  # by layer

    def take(self, num_tokens):
        """The next tokens come."""
        start, end = self.num_read, self.num_read + num_tokens
        self.num_read = end
        num_later = end - max(start, self.sees_btk.shape[1])
        parts = [self.sees_btk[:, start:end]]
        if num_later > 0:
            parts.append(self.follows_bk[:, None].expand(-1, num_later, -1))
        sees = torch.cat(parts, dim=1)
        self.in_hand = sees if sees.any() else None


class Holder:
    """Where a model's layers find its `Reading`; None where there are no images."""

    reading = None

    def take(self, _decoder, args, kwargs):
        """Before each pass of the decoder."""
        if self.reading is None:
            return
        inputs = [kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args]
        self.reading.take(next(x for x in inputs if x is not None).shape[1])


class GatedCrossAttention(nn.Module):
    """x + tanh(gate) * attention(norm(x)); tokens that see nothing stay as they are.

    It joins a layer of transformers by hooks: what self-attention adds to the layer's input gets
    this added to it. Heads are those of self-attention; queries and keys are not rotated.

    Args:
        config: of the language model.
        norm: of the layer's kind.
        holder: of the model.
    """

    def __init__(self, config, num_key_value_heads, norm, holder):
        super().__init__()
        width = config.hidden_size
        head_dim = getattr(config, "head_dim", None) or width // config.num_attention_heads
        self.head_dim = head_dim
        self.norm = norm
        self.q_proj = nn.Linear(width, config.num_attention_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head_dim, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))
        self.holder = holder
        self._input = None

    def join(self, layer):
        """Stand between self-attention and MLP of a decoder's layer."""
        layer.cross_attention = self
        # What the first norm takes is the layer's input.
        layer.input_layernorm.register_forward_pre_hook(self._keep_input)
        layer.self_attn.register_forward_hook(self._add)

    def _keep_input(self, _norm, args):
        if self.holder.reading is not None:
            self._input = args[0]

    def _add(self, _attention, _args, output):
        reading, residual = self.holder.reading, self._input
        self._input = None
        if reading is None or reading.in_hand is None:
            return None
        is_tuple = isinstance(output, tuple)
        added = output[0] if is_tuple else output
        added = added + self(residual + added, reading)
        return (added, *output[1:]) if is_tuple else added

    def forward(self, hidden_btc, reading):
        """What the layer adds, [b, t, channels]; zeros where a token sees nothing."""
        keys, values = self._keys_and_values(reading, hidden_btc.device)
        sees = reading.in_hand.to(hidden_btc.device)
        if len(hidden_btc) != len(sees):  # several answers to each prompt
            repeats = len(hidden_btc) // len(sees)
            keys, values, sees = (x.repeat_interleave(repeats, 0) for x in (keys, values, sees))
        query = self.q_proj(self.norm(hidden_btc)).unflatten(-1, (-1, self.head_dim))
        groups = query.shape[2] // keys.shape[1]
        is_blind = ~sees.any(-1, keepdim=True)
        out = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys.repeat_interleave(groups, 1),
            values.repeat_interleave(groups, 1),
            # Of nothing there is no softmax: who sees nothing reads all, for nothing.
            attn_mask=(sees | is_blind)[:, None],
        )
        out_btc = self.o_proj(out.transpose(1, 2).flatten(2)) * self.gate.tanh()
        return out_btc.masked_fill(is_blind, 0)

    def _keys_and_values(self, reading, device):
        """Each [b, h, k, d]; once per prompt, unless they train."""
        found = reading.keys_and_values.get(self)
        if found is not None:
            return found
        rows = reading.rows_bkc.to(device)
        found = tuple(
            project(rows).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.k_proj, self.v_proj)
        )
        if not torch.is_grad_enabled():
            reading.keys_and_values[self] = found
        return found
