"""Every key of a published `config.json`: read, refused, or known to change nothing."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_folders

from nvlm.config.schema import LanguageConfig, RunConfig
from nvlm.convert.export.config import model_config
from nvlm.convert.hf.architectures import (
    folders_differ,
    language_problems,
    notes,
    released_problems,
    vision_problems,
)
from nvlm.convert.hf.config_keys import INTERN_VIT, LLAMA, MISTRAL, NVLM_D, QWEN2, QWEN3, Keys
from nvlm.convert.hf.expert_keys import QWEN2_MOE, QWEN3_MOE
from nvlm.convert.hf.folder import FolderPart
from nvlm.convert.hf.values import language_values, vision_values

KEYS = {
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "intern_vit": INTERN_VIT,
    "nvlm_d": NVLM_D,
}
# What `model.language` says of each decoder.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
DECODERS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"qkv_bias": False, "qk_layernorm": True, "kv_channels": 12},
    "llama": {"qkv_bias": False},
    "llama 3": {
        "qkv_bias": False,
        "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_type"},
    },
    "mistral": {"qkv_bias": False, "kv_channels": 16},
    "qwen2_moe": {"moe": {"num_experts": 4, "ffn_hidden_size": 24}},
    "qwen3_moe": {
        "qkv_bias": False,
        "qk_layernorm": True,
        "kv_channels": 12,
        "moe": {"num_experts": 4, "every_nth_layer": 2},
    },
    "qwen2 with yarn": {
        "rope_scaling": {"kind": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
    },
}

# What transformers 4 wrote into the parts of a model, of its base class (4.37, `to_dict`).
KEYS_OF_TRANSFORMERS_4 = re.findall(
    r"\w+",
    """
    _name_or_path add_cross_attention architectures bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label is_decoder is_encoder_decoder label2id length_penalty max_length min_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type
    pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16
    """,
)


def language_config(**changes: Any) -> LanguageConfig:
    sizes = {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "vocab_size": 64,
        "rope_base": 10000.0,
        "max_position_embeddings": 16,
    }
    return LanguageConfig(**{**sizes, **changes})


def language_class(decoder: str):
    """transformers' model."""
    import transformers

    names = {
        "qwen2": "Qwen2",
        "qwen2_moe": "Qwen2Moe",
        "qwen3": "Qwen3",
        "qwen3_moe": "Qwen3Moe",
        "mistral": "Mistral",
        "qwen2 with yarn": "Qwen2",
    }
    return getattr(transformers, f"{names.get(decoder, 'Llama')}ForCausalLM")


def decoder_values(decoder: str) -> dict[str, Any]:
    """A folder's `config.json`."""
    values = language_values(language_config(**DECODERS[decoder]))
    return {**values, "architectures": [language_class(decoder).__name__]}


def class_keys(config_class: type) -> dict[str, Any]:
    """The keys of a configuration class and their defaults; of what it writes, too."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    arguments = set(inspect.signature(config_class.__init__).parameters) - {
        "self",
        "args",
        "kwargs",
    }
    instance = config_class()
    return {
        key: getattr(instance, key, None) for key in fields | arguments | set(instance.to_dict())
    }


def config_classes() -> dict[str, type]:
    from nvlm.convert.hf_files.configuration_intern_vit import InternVisionConfig
    from nvlm.convert.hf_files.configuration_nvlm_d import NVLM_D_Config

    return {
        **{name: language_class(name).config_class for name in DECODERS if name in KEYS},
        "intern_vit": InternVisionConfig,
        "nvlm_d": NVLM_D_Config,
    }


# ------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("name", KEYS)
def test_every_key_of_the_configuration_class_is_known(name: str):
    """A release of transformers with a new key fails here until somebody read what it does."""
    from transformers import GenerationConfig

    found = class_keys(config_classes()[name])
    generation = GenerationConfig._get_default_generation_params()
    unknown = {
        key
        for key in [*found, *generation, *KEYS_OF_TRANSFORMERS_4]
        if not KEYS[name].is_known(key)
    }
    assert not unknown
    for key, accepted in KEYS[name].fixed.items():
        # 4096: the first one's; published Qwen-MoEs set theirs; ours has no expert for all tokens.
        exceptions = {"sliding_window": ["mistral"], "norm_topk_prob": ["qwen2_moe", "qwen3_moe"]}
        exceptions["shared_expert_intermediate_size"] = ["qwen2_moe"]
        if key in found and name not in exceptions.get(key, []):
            assert found[key] in accepted, f"{key} has the default {found[key]!r}"


@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_in_one_table(name: str):
    keys: Keys = KEYS[name]
    tables = [keys.settings, keys.fixed, keys.rules, keys.training, keys.prompts, keys.no_effect]
    listed = [key for table in tables for key in table]
    assert len(listed) == len(set(listed)) > 60
    assert all(keys.no_effect.values())


# ---------------------------------------------------------------------- what changes the outputs

ROPE_VARIANTS: list[dict[str, Any]] = [
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 2.0}},
    {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        }
    },
    {"rope_scaling": {**LLAMA3, "factor": 32.0}},
    {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 4}},
    {"rope_scaling": {**LLAMA3, "high_freq_factor": 2.0}},
    {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    {
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.5] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 8,
        }
    },
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    {"rope_parameters": None, "rope_theta": 500.0},
    {"rope_parameters": None, "rope_theta": 500},
    {"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 10000.0},
    {"rope_scaling": {"rope_type": "default", "rope_theta": 500.0}},
    {"rope_scaling": {"rope_type": "default"}},
    {"rope_scaling": {}},
    {"rope_scaling": None},
    {"rope_parameters": None, "rope_theta": 10000},
    {"rope_parameters": {"type": "default", "rope_theta": 10000}},
    {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    {"partial_rotary_factor": 0.5},
    *(
        {"rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 8, **change}}
        for change in (
            {"type": "yarn"},
            {"rope_type": "yarn"},
            {"rope_type": "yarn", "type": "yarn", "rope_theta": 10000},
            {"rope_type": "yarn", "beta_fast": 32, "beta_slow": 1},
            {"rope_type": "yarn", "attention_factor": 0.1 * math.log(2) + 1},
            {"rope_type": "yarn", "attention_factor": 1.5},
            {"rope_type": "yarn", "beta_fast": 3.0},
            {"rope_type": "yarn", "beta_slow": 0.1},
            {"rope_type": "yarn", "factor": 4.0},
            {"rope_type": "yarn", "original_max_position_embeddings": 4},
            {"rope_type": "yarn", "mscale": 0.5, "mscale_all_dim": 1.0},
            {"rope_type": "yarn", "truncate": False},
        )
    ),
]
OTHER_VARIANTS: list[dict[str, Any]] = [
    {"is_causal": False},
    {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "layer_types": None},
    {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "layer_types": None},
    {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2},
    {"use_sliding_window": True, "sliding_window": 4},
    {"sliding_window": 4},
    {"max_window_layers": 0},
    {"layer_types": ["attention"] * 2},
    {"head_dim": 16},
    {"head_dim": None},
    {"hidden_act": "gelu"},
    {"hidden_act": "relu"},
    {"hidden_act": "swish"},
    {"hidden_activation": "gelu"},
    {"logit_scale": 0.5},
    {"per_layer_config": {"0": {"rms_norm_eps": 0.1}}},
    {"num_hidden_layers": 1, "layer_types": None},
    {"num_key_value_heads": None},
    {"pad_token_id": 5, "bos_token_id": 3, "eos_token_id": [1, 2]},
    {"attn_implementation": "eager"},
    {"dtype": "bfloat16"},
    {"use_cache": False},
]


def one_by_one(values: dict[str, Any], defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """Each key of the class with another value of its kind."""
    found = []
    for key, default in defaults.items():
        value = values.get(key, default)
        if isinstance(value, bool):
            found.append({key: not value})
        elif isinstance(value, int):
            found += [{key: value + 1}, {key: max(1, value // 2)}]
        elif isinstance(value, float):
            found.append({key: value * 2 + 0.3})
        elif value is None:
            found += [{key: 2}, {key: 0.5}]
    return found


@pytest.mark.parametrize("decoder", DECODERS)
def test_what_changes_transformers_outputs_is_refused(decoder: str):
    """One key after the other; whoever computes something else must not be converted."""
    model_class = language_class(decoder)
    config_class = model_class.config_class
    language = language_config(**DECODERS[decoder])
    values = decoder_values(decoder)
    assert language_problems(values, language) == []
    token_ids = torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(0))

    def logits(values: dict, weights: dict | None = None):
        torch.manual_seed(0)
        # A copy: the class writes into the values it is given.
        model = model_class(config_class(**json.loads(json.dumps(values)))).eval().float()
        if weights is None:
            small_folders.randomise(model)
        else:
            model.load_state_dict(weights)
        with torch.no_grad():
            return model.state_dict(), model(token_ids, use_cache=False).logits

    weights, expected = logits(values)
    changed, refused, opened = 0, 0, 0
    of_class = class_keys(config_class)
    # Carried, with the tensors that are stored (test_refusals.py).
    del of_class["tie_word_embeddings"]
    variants = ROPE_VARIANTS + OTHER_VARIANTS + one_by_one(values, of_class)
    for change in variants:
        other = {**values, **change}
        if "rope_parameters" in change or "rope_scaling" in change:
            # As they are published: one spelling.
            for key in {"rope_theta", "rope_parameters"} - change.keys():
                del other[key]
        problems = language_problems(other, language)
        refused += bool(problems)
        try:
            _, found = logits(other, weights)
        except Exception:  # transformers cannot open such a folder
            continue
        opened += 1
        if not torch.allclose(found, expected, rtol=0, atol=1e-6):
            changed += 1
            assert problems, f"{change} changes the logits and is not refused"
    # Not everything is refused either.
    assert opened > 40
    assert changed >= 18
    assert len(variants) - refused > 25


@pytest.mark.parametrize("key, value", [("norm_type", "layer_norm"), ("layer_norm_eps", 0.1)])
def test_what_changes_internvits_outputs_is_refused(key: str, value: Any):
    from nvlm.convert.hf_files.configuration_intern_vit import InternVisionConfig
    from nvlm.convert.hf_files.modeling_intern_vit import InternVisionModel

    vision = small_folders.convert_config().model.vision
    values = vision_values(vision)
    model = InternVisionModel(InternVisionConfig(**values)).eval()
    small_folders.randomise(model)
    other = InternVisionModel(InternVisionConfig(**{**values, key: value})).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size)
    with torch.no_grad():
        difference = (model(pixels)[0] - other(pixels)[0]).abs().max()
    assert difference > 1e-3
    assert vision_problems(values, vision) == []
    (problem,) = vision_problems({**values, key: value}, vision)
    assert problem.startswith(f"{key} is {value!r}, expected ")


# ---------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}, "scaling 'mrope'"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}}, "'mrope_section'"),
        ({"rope_scaling": {"rope_type": "su"}}, "rotary scaling 'su'"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling has 'factor'"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', expected an object"),
        ({"rope_scaling": ["yarn"]}, "expected an object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differs by type of layer"),
        ({"rope_theta": 500.0}, "two bases of rotary embeddings, rope_theta 500.0 and rope_param"),
        ({"rope_theta": "10000"}, "two bases"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', expected true or"),
        ({"use_sliding_window": "no"}, "use_sliding_window is 'no', expected False"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, expected 2"),
        ({"num_hidden_layers": 10**30}, "expected 2"),
        ({"layer_types": "full_attention"}, "layer_types is 'full_attention'"),
        ({"layer_types": ["full_attention"]}, "expected full_attention 2 times"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"head_dim": 64}, "head_dim is 64, expected 8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"compression_config": {"format": "x"}}, "not known here.*compression_config: {"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"query_pre_attn_scalar": 144}, "query_pre_attn_scalar"),
        ({"logits_scaling": 8.0, "embedding_multiplier": 12.0}, "logits_scaling.*embedding_mul"),
        ({"attention_multiplier": 0.01}, "attention_multiplier"),
        ({"scale_emb": 12}, "scale_emb"),
        ({"use_qk_norm": True}, "use_qk_norm is True, expected False"),
        ({"use_mrope": True}, "use_mrope is True"),
        ({"dual_chunk_attention_config": {"chunk_size": 9}}, "dual_chunk_attention_config"),
        ({"num_experts": 8}, "num_experts: 8"),
        ({"\x1b[31mred": 1}, r"'\\x1b\[31mred': 1"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None, expected 1e-06"),
    ],
)
def test_a_config_that_computes_something_else_is_refused(change: dict, expected: str):
    language = language_config()
    problems = "; ".join(language_problems({**language_values(language), **change}, language))
    assert re.search(expected, problems), problems
    assert "\x1b" not in problems


@pytest.mark.parametrize(
    "change",
    [
        {"type": "yarn"},
        {"rope_type": "yarn", "beta_fast": 32, "beta_slow": 1},
        {"rope_type": "yarn", "attention_factor": 0.1 * math.log(4) + 1},
    ],
)
def test_the_recipe_of_qwen2_fits_in_every_spelling(change: dict):
    scaling = {"kind": "yarn", "factor": 4}
    language = language_config(max_position_embeddings=131072, rope_scaling=scaling)
    recipe = {"factor": 4.0, "original_max_position_embeddings": 32768, **change}
    # As it is published, with one spelling.
    values = {**decoder_values("qwen2"), "rope_scaling": recipe}
    del values["rope_parameters"]
    assert language_problems(values, language) == []
    assert "mscale is 0.5, expected None" in " ".join(
        language_problems({**values, "rope_scaling": {**recipe, "mscale": 0.5}}, language)
    )


def test_biases_that_llama_may_have_are_refused():
    language = language_config(qkv_bias=False)
    values = {**language_values(language), "attention_bias": True, "mlp_bias": True}
    assert language_problems({**values, "sliding_window": 4096}, language) == [
        "attention_bias is True, expected False",
        "mlp_bias is True, expected False",
        "sliding_window is 4096, expected None",
    ]


def test_what_others_leave_in_a_config_is_accepted():
    """Fine-tunes and tools add keys that change nothing."""
    language = language_config()
    values = language_values(language)
    leftovers = {
        "_name_or_path": "somebody/model",
        "_attn_implementation_autoset": True,
        "auto_map": {"AutoConfig": "configuration.Config"},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": False,
        "unsloth_version": "2025.1",
        "pretraining_tp": 1,
        "tokenizer_padding_side": "right",
        "use_mrope": False,
        "rope_scaling": None,
        "some_new_key": None,
        "sliding_window": 131072,
        "bos_token_id": 1,
    }
    assert language_problems({**values, **leftovers}, language) == []
    vision = small_folders.convert_config().model.vision
    dumped = {"use_flash_attn": True, "initializer_factor": 0.1, "tie_word_embeddings": True}
    assert vision_problems({**vision_values(vision), **dumped}, vision) == []


def test_a_missing_key_has_its_class_default():
    language = language_config()
    minimal = {
        key: value
        for key, value in language_values(language).items()
        if key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
        or key in ("num_attention_heads", "num_key_value_heads")
    }
    assert language_problems(minimal, language) == []
    other = language_config(rope_base=1e6, norm_epsilon=1e-5)
    assert language_problems(minimal, other) == [
        "rms_norm_eps is 1e-06, expected 1e-05",
        "rope_theta is 10000.0 (transformers' default), expected 1000000.0",
    ]
    # transformers reads one of the two objects, and finds no base in it.
    both = {
        **minimal,
        "rope_scaling": {"rope_type": "default"},
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    }
    assert language_problems(both, language_config(rope_base=1e6)) == [
        "rope_theta is 10000.0 (transformers' default, since it reads rope_scaling and not "
        "rope_parameters), expected 1000000.0"
    ]


def test_of_an_nvlm_d_every_key_is_looked_at():
    config: RunConfig = small_folders.convert_config()
    values = model_config(config, "float32", 1, 2, 3)
    assert released_problems(values, config.model) == []
    changes = {
        "select_layer": -2,
        "ps_version": "v1",
        "downsample_ratio": 1.0,
        "force_image_size": 448,
        "projector_layer_norm_eps": 1e-5,
        "projector_hidden_size": 77,
        "use_llm_lora": 16,
        "pad2square": True,
        "image_fold": 2,
        "mlp_connector_layers": 3,
    }
    found = "; ".join(released_problems({**values, **changes}, config.model))
    for key, value in changes.items():
        assert f"{key} is {value!r}" in found or f"{key}: {value!r}" in found
    del values["ps_version"]
    assert released_problems(values, config.model) == ["ps_version is None, expected 'v2'"]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_an_export_says_all_that_is_computed(name: str):
    """Nothing is left to the defaults of classes, which may change."""
    config = small_folders.convert_config(
        f"model.language.qkv_bias={str(name == 'qwen2').lower()}",
        f"model.language.qk_layernorm={str(name == 'qwen3').lower()}",
    )
    values = model_config(config, "float32", 1, 2, 3)
    classes = config_classes()
    for part, architecture in (
        (values["llm_config"], name),
        (values["vision_config"], "intern_vit"),
        (values, "nvlm_d"),
    ):
        keys, of_class = KEYS[architecture], class_keys(classes[architecture])
        # What transformers' base class has for every model.
        common = {"is_encoder_decoder", "per_layer_config"}
        expected = {*keys.compared(), *keys.training, *keys.prompts} & of_class.keys() - common
        # Of an MLP there are the released keys; of the last layer's features none.
        expected -= {"connector", "feature_layers"}
        assert expected <= part.keys()
        assert not [key for key in part if not keys.is_known(key)]


# ------------------------------------------------------------------------------ notes and verify


class _Folder(FolderPart):
    def __init__(self, config: dict):
        super().__init__(Path("folder"), config)


def test_what_is_left_behind_is_said():
    config = small_folders.convert_config()
    language = {
        **language_values(config.model.language),
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.1,
        "max_position_embeddings": 131072,
        "auto_map": {"AutoModel": "modeling.Model"},
    }
    assert notes(_Folder(language), config) == [
        "folder/config.json: attention_dropout 0.1 is for training, and not taken over",
        "folder/config.json: max_position_embeddings is 131072, and "
        "model.language.max_position_embeddings 4096: exports will say the latter",
        "folder/config.json: auto_map names code of the folder's own, which is not run here",
    ]
    vision = {**vision_values(config.model.vision), "architectures": ["InternVisionModel"]}
    assert notes(_Folder(vision), config) == []
    (note,) = notes(_Folder({**vision, "drop_path_rate": 0.1}), config)
    assert "drop_path_rate 0.1 is for training" in note


def test_two_folders_with_other_settings_differ():
    language = language_values(language_config())
    left = _Folder({**language, "architectures": ["Qwen2ForCausalLM"], "use_cache": True})
    same = _Folder({**left.config, "use_cache": False, "rope_theta": 10000})
    assert folders_differ(left, same) == []  # type: ignore[arg-type]
    other = _Folder(
        {**left.config, "rope_scaling": {"type": "yarn", "factor": 2.0}, "logit_scale": 2.0}
    )
    assert folders_differ(left, other) == [  # type: ignore[arg-type]
        "logit_scale is None in A, 2.0 in B",
        "rotary embeddings is {'rope_theta': 10000.0} in A, "
        "{'type': 'yarn', 'factor': 2.0, 'rope_theta': 10000.0} in B",
    ]
