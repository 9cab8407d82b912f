"""How many tokens go to which process, as an all-to-all takes it."""

from __future__ import annotations

import numpy as np
import torch

from nvlm.megatron.dispatch_counts import use_numbers


def test_counts_of_the_host_are_numbers(parallel):
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    counts = torch.tensor([3, 4])
    plain = moe_utils.maybe_move_tensor_to_cpu(counts, as_numpy=True)
    assert isinstance(plain, torch.Tensor), "the correction is not needed any more"
    use_numbers()
    found = token_dispatcher.maybe_move_tensor_to_cpu(counts, as_numpy=True)
    assert isinstance(found, np.ndarray) and found.tolist() == [3, 4]
    assert token_dispatcher.maybe_move_tensor_to_cpu(counts) is counts
