"""Corrections of Megatron-core 0.16.1, one file each.

A file says what is wrong, what is done about it, and what to look at again when the pinned version
moves. `tests/megatron/` has a test for each that shows the fault in plain Megatron-core: when such
a test fails, its correction is no longer needed.

    known_warnings       warnings that mean nothing to a user
    uncompiled_import    importing it loads torch's compiler
    unused_imports       importing it loads torch's distributed tensors and more that no run uses
    group_step_adam      the optimizer that it takes without fused ones cannot be resumed
    gradient_norm        without a fused norm, it waits for the device once per gradient
    in_process_writes    all of a checkpoint is copied first, then written by forked processes
    optimizer_shares     optimizer state is gathered to be written, read whole, and can be shifted
    group_identity       parameter groups that differ in learning rate alone are mixed up
    optimizer_settings   a resumed optimizer keeps the checkpoint's learning rates
    idle_stage           a pipeline stage without trainable parameters cannot be saved
    sharding_metadata    process groups are written into the dictionary that it is given
    extra_state          checkpoints depend on the implementation of the layers
    residual_gradients   residual additions ignore `no_grad`
    checkpoint_without_fp8
                         norms cannot be recomputed without Transformer Engine
    recomputed_inputs    recomputed layers and norms after frozen embeddings do not train
    packed_rotary        rotary embedding of packed documents waits for the device in each layer
    qkv_bias             the bias of queries, keys and values cannot be left out alone
    interleaved_stages   messages between virtual stages arrive in the wrong place, or changed

Only the functions here import Megatron-core, never a file as it is loaded: the platform, one layer
above, decides when and how that happens.

What is not here, because it is not about a fault: modules of our own where Megatron-core has none
that fits (`nvlm/model/parts`: attention over packed documents, norms; `encoders/internvit`:
LayerScale; tests/megatron/test_own_parts.py shows what its own ones refuse), and calls that name a
device (`nvlm/platform`). Checkpoints that are read as data instead of code have a room of their own
in `nvlm/safe_loading.py`, because torch's part of that is as large.
"""
