"""Parameters, operations and bytes of decoders with experts, by hand (docs/experts.md)."""

from __future__ import annotations

from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.sizes.flops import forward_flops
from nvlm.sizes.memory import stage_memory
from nvlm.sizes.parameters import LANGUAGE, count_parameters, parameters_by_name

# Of Qwen2-0.5B's MLP: gate, up and down.
MLP = 3 * 896 * 4864
EXPERTS = "model.language.moe={num_experts: 8, every_nth_layer: 2}"


def config_of(*overrides: str) -> RunConfig:
    return load_config(
        REPOSITORY / "configs/run/internvit_300m_qwen2_0_5b/sft.yaml", list(overrides)
    )


def num_parameters(config: RunConfig, component: str | None = None) -> int:
    return count_parameters(parameters_by_name(config.model), [], component).total


def test_parameters():
    added = 12 * (7 * MLP + 8 * 896)
    assert added == 1_098_338_304
    assert num_parameters(config_of(EXPERTS)) == 822_334_336 + added == 1_920_672_640


def test_an_own_width():
    narrow = "model.language.moe={num_experts: 8, every_nth_layer: 2, ffn_hidden_size: 1216}"
    expected = 494_032_768 + 12 * (8 * MLP // 4 - MLP + 8 * 896)
    assert num_parameters(config_of(narrow), LANGUAGE) == expected


def test_operations_are_of_the_experts_that_a_token_goes_through():
    dense, sparse = (forward_flops(config_of(*o).model).per_token for o in ([], [EXPERTS]))
    assert sparse - dense == 2 * 12 * (MLP + 8 * 896)


def test_expert_parallel_ranks_keep_their_experts_alone():
    """In bf16 each trained parameter takes 2 + 4 bytes, and 12 shared among those that hold it."""
    alone = stage_memory(config_of(EXPERTS), 0, 4)
    shared = stage_memory(config_of(EXPERTS, "parallel.expert=4"), 0, 4)
    not_here = 12 * 6 * MLP  # of 8 experts a process has two
    assert alone.parameters - shared.parameters == 2 * not_here
    assert alone.gradients - shared.gradients == 4 * not_here
    # Four ranks share the state of eight experts, or one has all of two.
    assert abs(alone.optimizer - shared.optimizer) < 12 * 128 * 4
