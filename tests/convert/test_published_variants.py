"""Variants of the models through conversion: bit for bit, from folders named as they are published.

The InternViT comes out of transformers' own model, under the names of OpenGVLab's checkpoints.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import published_models, small_folders
from helpers.export_logits import greedy_answers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from nvlm.batch import MicroBatch
from nvlm.config import RunConfig
from nvlm.convert import convert_from_hf, convert_to_hf
from nvlm.convert.hf_files.modeling_nvlm_d import NVLM_D_Model
from nvlm.convert.rules import expected_tensors
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.errors import ConvertError

INTERNVIT_300M = [
    "model.vision.normalization=LayerNorm",
    "model.vision.qk_layernorm=false",
    "model.vision.qkv_bias=true",
    "model.vision.layer_scale_init=1.0",
]
NO_ZERO_HEADS = ["model.vision.num_stored_attention_heads=5"]
YI = ["model.language.qkv_bias=false"]
QWEN3 = [
    "model.language.qkv_bias=false",
    "model.language.qk_layernorm=true",
    "model.language.kv_channels=48",
]
LLAMA3 = [
    "model.language.qkv_bias=false",
    "model.language.rope_scaling={factor: 8.0, original_max_position_embeddings: 64}",
]
YARN = [
    "model.language.rope_scaling={kind: yarn, factor: 16, original_max_position_embeddings: 16}",
    "model.language.max_position_embeddings=256",
    "stage.sequence_length=256",
]
EXPERTS = [
    "model.language.moe={num_experts: 4, every_nth_layer: 2, ffn_hidden_size: 96}",
]
SHARED = ["model.language.share_embeddings_and_output_weights=true"]
CASES = {
    "InternViT-300M, Qwen2-0.5B": [*INTERNVIT_300M, *NO_ZERO_HEADS, *SHARED],
    "InternViT-300M with zero heads, Yi": [*INTERNVIT_300M, *YI],
    "InternViT-6B without zero heads": NO_ZERO_HEADS,
    "InternViT-300M, Qwen3-0.6B": [*INTERNVIT_300M, *QWEN3, *SHARED],
    "InternViT-6B, Llama 3": [*NO_ZERO_HEADS, *LLAMA3],
    "InternViT-6B, Qwen2 with YaRN": [*NO_ZERO_HEADS, *YARN],
    "InternViT-300M, Qwen3-MoE": [*INTERNVIT_300M, *QWEN3, *EXPERTS],
}


def published_vision_model(vision):
    model = published_models.vision_model(vision)
    small_folders.randomise(model)
    return model


def names_of_opengvlab(model) -> dict[str, Tensor]:
    """The weights under the names of InternViT's original checkpoints: q, k and v in one tensor."""
    tensors = {
        "embeddings.class_embedding": model.embeddings.cls_token,
        "embeddings.position_embedding": model.embeddings.position_embeddings,
        "embeddings.patch_embedding.weight": model.embeddings.patch_embeddings.projection.weight,
        "embeddings.patch_embedding.bias": model.embeddings.patch_embeddings.projection.bias,
    }
    renamed = {
        "lambda_1": "ls1",
        "lambda_2": "ls2",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.projection_layer": "attn.proj",
        "attention.q_norm": "attn.q_norm",
        "attention.k_norm": "attn.k_norm",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for index, layer in enumerate(model.encoder.layer):
        found = dict(layer.named_parameters())
        prefix = f"encoder.layers.{index}."
        for kind in ("weight", "bias"):
            projections = [f"attention.{part}_proj.{kind}" for part in "qkv"]
            if projections[0] in found:
                joined = torch.cat([found.pop(name) for name in projections])
                tensors[f"{prefix}attn.qkv.{kind}"] = joined
        for name, tensor in found.items():
            (old,) = [old for old in renamed if name == old or name.startswith(f"{old}.")]
            tensors[prefix + renamed[old] + name[len(old) :]] = tensor
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def make_published_vision_folder(folder: Path, vision):
    """As OpenGVLab/InternViT-300M-448px is published; returns transformers' model of the same."""
    model = published_vision_model(vision)
    config = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "attention_dropout": 0.0,
        "drop_path_rate": 0.1,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": vision.ffn_hidden_size,
        "layer_norm_eps": vision.norm_epsilon,
        "num_attention_heads": vision.num_attention_heads,
        "num_channels": 3,
        "num_hidden_layers": vision.num_layers,
        "patch_size": vision.patch_size,
        "qk_normalization": vision.qk_layernorm,
        "qkv_bias": vision.qkv_bias,
        "use_flash_attn": True,
    }
    if vision.normalization == "LayerNorm":  # the 6B leaves out its own, the class's default
        config["norm_type"] = "layer_norm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(names_of_opengvlab(model), folder / "model.safetensors")
    return model


@dataclass(frozen=True)
class Case:
    name: str
    config: RunConfig
    vision: Path
    language: Path
    published: Any  # transformers' vision model with the weights of the folder


@pytest.fixture(params=CASES, scope="module")
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("variant")
    config = small_folders.convert_config(*CASES[request.param])
    language = config.model.language
    published = make_published_vision_folder(folder / "vision", config.model.vision)
    small_folders.make_language_folder(
        folder / "language",
        config,
        tie_word_embeddings=language.share_embeddings_and_output_weights,
    )
    return Case(request.param, config, folder / "vision", folder / "language", published)


@pytest.fixture(scope="module")
def converted(case, tmp_path_factory) -> tuple[Path, Path]:
    """(checkpoint, export)"""
    folder = tmp_path_factory.mktemp("converted")
    checkpoint = convert_from_hf(case.vision, case.language, case.config, folder / "checkpoint")
    return checkpoint, convert_to_hf(checkpoint, folder / "export")


def test_there_and_back_bit_for_bit(case, converted):
    config = case.config
    checkpoint, export = converted
    keys = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata.keys()
    shares = config.model.language.share_embeddings_and_output_weights
    assert ("language_model.output_layer.weight" in keys) != shares

    exported = small_folders.read_tensors(export)
    shapes = {name: tuple(tensor.shape) for name, tensor in exported.items()}
    assert shapes == expected_tensors(export_rules(config.model))
    language = small_folders.read_tensors(case.language)
    assert ("lm_head.weight" in language) != shares
    for name, tensor in language.items():
        assert torch.equal(exported[f"language_model.{name}"], tensor), name
    vision = config.model.vision
    real, stored = vision.hidden_size, vision.num_stored_attention_heads * vision.head_dim
    for name, tensor in small_folders.read_tensors(case.vision).items():
        found = exported[f"vision_model.{name}"]
        if "attn.qkv." in name:
            found = found.unflatten(0, (3, stored))
            assert not found[:, real:].any()
            found = found[:, :real].flatten(0, 1)
        elif "attn.proj.weight" in name:
            assert not found[:, real:].any()
            found = found[:, :real]
        assert torch.equal(found, tensor), name


def test_export_computes_what_megatron_computes(case, converted, measure):
    """Logits of text around two tiles and answers, by the modelling files of the export."""
    from nvlm.generate.engine import Engine
    from nvlm.model.encoders.internvit import normalize_tiles

    vision, language = case.config.model.vision, case.config.model.language
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, vision.image_size, vision.image_size)
    tiles = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    checkpoint, export = converted
    published = NVLM_D_Model.from_pretrained(export).eval()
    engine = Engine(checkpoint)
    engine.load()
    image_id = published.config.img_context_token_id
    tokens = torch.randint(0, language.vocab_size, (1, 60), generator=generator)
    tokens[tokens == image_id] += 1
    tokens[:, 4 : 4 + 2 * case.config.model.num_tokens_per_tile] = image_id
    batch = MicroBatch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        position_ids=torch.arange(60)[None],
        image_mask=tokens == image_id,
        cu_seqlens=torch.tensor([0, 60], dtype=torch.int32),
        tiles=tiles,
    )
    with torch.no_grad():
        expected = engine.model(batch, return_logits=True)
        result = published(pixel_values=normalize_tiles(tiles), input_ids=tokens).logits
    answers, said = greedy_answers(engine, published, tokens, tiles, normalize_tiles(tiles))
    engine.close()
    assert answers == said
    # Measured: at most 2e-6 where logits reach 3.
    error = float((result - expected).abs().max())
    what = f"logits of the export, largest difference, {case.name}"
    measure(what, "our Megatron model", error, 1e-4)


def test_modelling_file_reads_the_published_folder(case, measure):
    """modeling_intern_vit.py opens OpenGVLab's names, and computes what transformers computes."""
    from nvlm.convert.hf_files.configuration_intern_vit import InternVisionConfig
    from nvlm.convert.hf_files.modeling_intern_vit import InternVisionModel

    vision = case.config.model.vision
    # Stochastic depth is for training: the published folders of the 300M set it.
    hf_config = InternVisionConfig.from_pretrained(case.vision, drop_path_rate=0.0)
    model = InternVisionModel.from_pretrained(case.vision, config=hf_config).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size, generator=generator)
    with torch.no_grad():
        expected = case.published(pixels).last_hidden_state
        result = model(pixels).last_hidden_state
    # Measured: at most 2e-6 where outputs reach 10.
    measure(
        f"modeling_intern_vit.py on a published folder, largest difference, {case.name}",
        "transformers InternVLVisionModel",
        float((result - expected).abs().max()),
        1e-5,
    )


def test_sharing_what_the_folder_keeps_apart_is_refused(tmp_path):
    config = small_folders.convert_config(*SHARED)
    small_folders.make_vision_folder(tmp_path / "vision", config)
    small_folders.make_language_folder(tmp_path / "language", config)
    with pytest.raises(ConvertError, match=r"tie_word_embeddings is false.*set it to false"):
        convert_from_hf(tmp_path / "vision", tmp_path / "language", config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_variant_is_refused_with_all_that_differs(tmp_path):
    make_published_vision_folder(
        tmp_path / "vision", small_folders.convert_config(*INTERNVIT_300M).model.vision
    )
    config = small_folders.convert_config()
    small_folders.make_language_folder(tmp_path / "language", config)
    with pytest.raises(ConvertError) as refused:
        convert_from_hf(tmp_path / "vision", tmp_path / "language", config, tmp_path / "out")
    assert str(refused.value) == (
        f"{tmp_path}/vision/config.json: does not fit model.vision of the configuration: norm_type "
        "is 'layer_norm', expected 'rms_norm'; qk_normalization is False, expected True; qkv_bias "
        "is True, expected False"
    )


def test_trained_dummy_heads_are_refused(tmp_path):
    """A folder that stores 8 heads, the last three of which hold something."""
    config = small_folders.convert_config()
    small_folders.make_vision_folder(tmp_path / "vision", config)
    small_folders.make_language_folder(tmp_path / "language", config)
    file = tmp_path / "vision" / "model.safetensors"
    tensors = small_folders.read_tensors(tmp_path / "vision")
    for name, tensor in tensors.items():
        if "attn.qkv" in name:
            grown = torch.zeros(3, 256, 160)
            grown[:, :160] = tensor.view(3, 160, 160)
            tensors[name] = grown.flatten(0, 1)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            tensors[name] = torch.cat([tensor, torch.zeros(96)])
        elif "attn.proj.weight" in name:
            tensors[name] = torch.cat([tensor, torch.zeros(160, 96)], dim=1)
    folders = (tmp_path / "vision", tmp_path / "language", config)
    save_file(tensors, file)
    convert_from_hf(*folders, tmp_path / "out")
    tensors["encoder.layers.1.attn.k_norm.weight"][200] = 1
    save_file(tensors, file)
    with pytest.raises(ConvertError, match=r"/vision: .*\.1\.attn\.k_norm\.weight: stored heads"):
        convert_from_hf(*folders, tmp_path / "refused")
    assert not list(tmp_path.glob("refused*"))


def test_a_mistral_is_read_as_the_llama_that_it_computes(tmp_path):
    """Without its sliding window; with one it is refused."""
    config = small_folders.convert_config(*YI, "model.language.kv_channels=32")
    small_folders.make_vision_folder(tmp_path / "vision", config)
    small_folders.make_language_folder(tmp_path / "llama", config)
    shutil.copytree(tmp_path / "llama", tmp_path / "mistral")
    file = tmp_path / "mistral" / "config.json"
    values = {
        **json.loads(file.read_text()),
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": None,
    }
    del values["attention_bias"], values["mlp_bias"]
    file.write_text(json.dumps(values))
    exported = {}
    for name in ("llama", "mistral"):
        checkpoint = convert_from_hf(
            tmp_path / "vision", tmp_path / name, config, tmp_path / f"{name}_checkpoint"
        )
        exported[name] = convert_to_hf(checkpoint, tmp_path / f"{name}_export")
    tensors = [small_folders.read_tensors(folder) for folder in exported.values()]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])

    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "mistral").eval()
    assert type(opened).__name__ == "MistralForCausalLM"
    tokens = torch.randint(0, config.model.language.vocab_size, (1, 40))
    with torch.no_grad():
        expected = opened(tokens).logits
        found = NVLM_D_Model.from_pretrained(exported["mistral"]).eval()(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    file.write_text(json.dumps({**values, "sliding_window": 4096}))
    with pytest.raises(ConvertError, match="sliding_window is 4096, expected None"):
        convert_from_hf(tmp_path / "vision", tmp_path / "mistral", config, tmp_path / "out")
