"""Other programs that open an export: VLMEvalKit's calls, vLLM's expectations, variants."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import export_runs, small_folders, variants, vllm_expectations
from helpers.export_runs import Exported, make_export
from helpers.paths import REPOSITORY
from PIL import Image

from nvlm.config import load_config
from nvlm.convert.export.config import model_config, serving_differences
from nvlm.convert.rules import expected_tensors
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.data.images.image import to_pixels
from nvlm.data.images.tiling import cut_tiles
from nvlm.data.text.encode import SampleEncoder

VARIANTS = {
    "InternViT-300M, shared embeddings": [
        "model.vision.normalization=LayerNorm",
        "model.vision.qk_layernorm=false",
        "model.vision.qkv_bias=true",
        "model.vision.num_stored_attention_heads=5",
        "model.language.share_embeddings_and_output_weights=true",
    ],
    "Yi": ["model.language.qkv_bias=false"],
    "Qwen3": variants.QWEN3,
    "Llama 3": variants.LLAMA3,
}
LANGUAGE_CLASSES = {
    "InternViT-300M, shared embeddings": "Qwen2ForCausalLM",
    "Yi": "LlamaForCausalLM",
    "Qwen3": "Qwen3ForCausalLM",
    "Llama 3": "LlamaForCausalLM",
}
QUESTIONS = ["What is it?", "Read the text.\nAnswer the question using a single word or phrase."]
CONVERSATIONS = {
    "single tile": ([{"role": "user", "content": "<image>\nWhat is it?"}], [1]),
    "several tiles": ([{"role": "user", "content": "<image>\nRead the total."}], [7]),
    "several images": ([{"role": "user", "content": "<image>\n<image>\nWhat differs?"}], [3, 1]),
    "several turns": (
        [
            {"role": "user", "content": "<image>\nWhat is this?"},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "<image>\nAnd that?"},
        ],
        [1, 5],
    ),
    "text only": ([{"role": "user", "content": "What is 2 + 2?"}], []),
    "own system message": (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}],
        [],
    ),
}
# Whether vLLM's class takes the weights of the shipped configurations.
LOADED_BY_VLLM = {
    "nvlm_d_72b": True,
    "nvlm_d_34b": True,
    "nvlm_x_72b": False,
    "nvlm_x_34b": False,
    "nvlm_h_72b": False,
    "nvlm_h_34b": False,
    "internvit_6b_qwen2_7b": True,
    "internvit_300m_qwen2_0_5b": False,
    "internvit_300m_qwen3_4b": False,
    "internvit_300m_qwen3_4b_moe": False,
    "internvit_300m_qwen2_5_7b_128k": False,
    "internvit_300m_qwen2_5_7b_x": False,
    "internvit_300m_qwen2_5_7b_h": False,
    "internvit_300m_llama_3_2_1b": False,
    "internvit_300m_mistral_7b": False,
    "internvit_300m_yi_6b": False,
    "siglip_so400m_qwen3_4b": False,
    "tiny": False,
}


@dataclass(frozen=True)
class Served:
    converted: Exported
    variants: dict[str, Exported]
    images: list[Image.Image]
    tiles: np.ndarray
    cases: dict
    results: dict


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """What a process without this repository makes of the exports."""
    converted = make_export(tmp_path_factory.mktemp("served"), export_runs.SERVED)
    exports = {
        name: make_export(tmp_path_factory.mktemp("variant"), overrides)
        for name, overrides in VARIANTS.items()
    }
    folder = tmp_path_factory.mktemp("serving-client")
    generator = np.random.default_rng(0)
    images, questions = [], []
    for (width, height), question in zip([(640, 480), (300, 310)], QUESTIONS):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        images.append(Image.fromarray(pixels))
        file = folder / f"{width}.png"
        images[-1].save(file)
        questions.append((str(file), question))
    yi = exports["Yi"].config.model
    vision = yi.vision
    image_id = json.loads((converted.export / "config.json").read_text())["img_context_token_id"]
    input_ids = torch.randint(0, 1000, (1, 60), generator=torch.Generator().manual_seed(0))
    input_ids[:, 4 : 4 + 2 * yi.num_tokens_per_tile] = image_id
    tiles = generator.integers(0, 256, (2, 3, vision.image_size, vision.image_size), np.uint8)
    cases = {
        "questions": questions,
        "conversations": CONVERSATIONS,
        "variants": {name: str(variant.export) for name, variant in exports.items()},
        "pixels": export_runs.normalize(tiles),
        "input_ids": input_ids,
    }
    results = export_runs.run_client("serving_client.py", converted.export, cases, folder)
    return Served(converted, exports, images, tiles, cases, results)


def test_client_uses_nothing_of_this_repository(served):
    assert served.results["imported"] == []


# ------------------------------------------------------------------------------------ VLMEvalKit


def test_vlmevalkit_calls_work_unchanged(served):
    results, config = served.results["vlmevalkit"], served.converted.config
    encoder = SampleEncoder.from_config(config)
    assert [len(values) for values in results["pixel_values"]] == [7, 1]
    for number, (image, question) in enumerate(zip(served.images, QUESTIONS)):
        tiles = cut_tiles(to_pixels(image), config.stage.max_num_tiles, True, 448)
        expected = export_runs.normalize(tiles).to(torch.bfloat16).float()
        assert torch.equal(results["pixel_values"][number], expected)
        messages = [{"role": "user", "content": f"<image>\n{question}"}]
        prompt, _ = encoder.encode_prompt(messages, export_runs.grids(encoder, [len(tiles)]))
        # Asked twice: as VLMEvalKit does, and with the export's own loader.
        assert results["prompts"][2 * number : 2 * number + 2] == [prompt.tolist()] * 2
    assert results["answers"] == results["again"]
    assert all(isinstance(answer, str) for answer in results["answers"])
    assert results["settings"] == {"max_new_tokens": 8, "do_sample": False}
    assert results["dtype"] == "torch.bfloat16"


# ------------------------------------------------------------------------------------------ vLLM


def test_attributes_that_vllm_reads(served):
    attributes = served.results["vllm"]["attributes"]
    kinds = {path: type(value) for path, value in attributes.items()}
    assert kinds == vllm_expectations.ATTRIBUTES
    model = served.converted.config.model
    assert attributes["architectures"] == ["NVLM_D"]
    assert attributes["model_type"] == "NVLM_D"
    assert attributes["ps_version"] == "v2"
    assert attributes["use_thumbnail"] is True
    assert attributes["vision_config.num_attention_heads"] == model.vision.num_attention_heads
    assert attributes["text_config.architectures"] == ["Qwen2ForCausalLM"]
    assert attributes["text_config.tie_word_embeddings"] is False
    assert served.results["vllm"]["text_config"] == {"class": "Qwen2Config", "is": True}


def test_weights_that_vllm_loads(served):
    tensors = small_folders.read_tensors(served.converted.export)
    config = json.loads((served.converted.export / "config.json").read_text())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == vllm_expectations.tensors(config)
    assert serving_differences(served.converted.config) == []


def test_prompts_that_vllm_feeds_are_the_trainings(served):
    """Its chat endpoint applies the folder's template, then puts each image's text in place."""
    encoder = SampleEncoder.from_config(served.converted.config)
    assert served.results["vllm"]["placeholder"] == encoder.tokenizer.image_id
    assert served.results["vllm"]["eos_token"] == "<|im_end|>"
    for name, (messages, num_tiles) in CONVERSATIONS.items():
        expected, _ = encoder.encode_prompt(messages, export_runs.grids(encoder, num_tiles))
        assert served.results["vllm"]["prompts"][name] == expected.tolist(), name


@pytest.mark.parametrize("name", LOADED_BY_VLLM)
def test_shipped_configurations_and_vllm(name):
    config = load_config(REPOSITORY / "configs" / "run" / name / "sft.yaml")
    # Of other fusions and encoders vLLM has no class.
    if config.model.fusion == "decoder_only" and config.model.vision.kind == "internvit":
        exported = expected_tensors(export_rules(config.model))
        expected = vllm_expectations.tensors(model_config(config, "bfloat16", 0, 1, 2))
        assert (exported == expected) == LOADED_BY_VLLM[name]
    refused = [text for text in serving_differences(config) if "vLLM cannot load it" in text]
    assert bool(refused) != LOADED_BY_VLLM[name]


def test_every_shipped_configuration_is_covered():
    found = {path.parent.name for path in (REPOSITORY / "configs" / "run").glob("*/sft.yaml")}
    assert found == set(LOADED_BY_VLLM)


@pytest.mark.parametrize(
    ("override", "difference"),
    {
        "model.connector.norm_epsilon=1e-6": "epsilon 1e-06; vLLM computes with 1e-05",
        "model.connector.ffn_hidden_size=256": "projector is 256 wide.*feed-forward, 512",
        "model.vision.num_stored_attention_heads=8": "stores 8 heads.*expects 12",
        "model.image_token=<|im_sep|>": "placeholder is <|vision_pad|>, this model's is <|im_sep|>",
        "stage.tile_tags=none": "without tile tags",
        "stage.use_thumbnail=false": "without thumbnails",
        "stage.image_boundary=separate": "tokenised apart; no vLLM feeds that",
        "stage.image_boundary=merged": "vLLM from 0.29 on feeds two, which changes answers",
        "model.vision.image_size=224": "VLMEvalKit cannot feed it: .* reads tiles of 224",
        "stage.max_num_tiles=4": "at most 6 tiles, this model was trained with 4",
    }.items(),
)
def test_each_difference_is_said(override, difference):
    (found,) = serving_differences(small_folders.convert_config(*export_runs.SERVED, override))
    assert re.search(difference.replace("|", r"\|"), found)


def test_tags_of_two_digits_are_said():
    config = small_folders.convert_config(*export_runs.SERVED, "stage.max_num_tiles=12")
    tiles, digits = sorted(serving_differences(config))
    assert "at most 6 tiles, this model was trained with 12" in tiles
    assert "tags of 2 digits, as `<tile_01>`" in digits


def test_single_tile_models_keep_the_thumbnail_key():
    """The tag of the only tile is the thumbnail's; vLLM takes it from `use_thumbnail`."""
    config = small_folders.convert_config("stage.max_num_tiles=1", "stage.use_thumbnail=false")
    assert model_config(config, "float32", 0, 1, 2)["use_thumbnail"] is True
    assert "thumbnail" not in " ".join(serving_differences(config))


def test_documented_table_is_the_tested_one():
    text = (REPOSITORY / "docs" / "serving.md").read_text()
    documented = set(re.findall(r"`([a-z_.]+)`", text))
    assert set(vllm_expectations.ATTRIBUTES) <= documented
    weights = vllm_expectations.tensors(
        model_config(small_folders.convert_config(*export_runs.SERVED), "float32", 0, 1, 2)
    )
    patterns = {re.sub(r"layers\.\d+", "layers.N", name) for name in weights}
    missing = [name for name in patterns if f"`{name}`" not in text]
    assert not missing


# -------------------------------------------------------------------------------------- variants


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_open_and_compute_what_megatron_computes(served, name, measure):
    variant, results = served.variants[name], served.results["variants"][name]
    logits = export_runs.megatron_logits(variant, served.cases["input_ids"], served.tiles)
    tied = variant.config.model.language.share_embeddings_and_output_weights
    for opener in ("AutoModel", "AutoModelForCausalLM"):
        opened = results[opener]
        assert opened["problems"] == {}
        assert opened["tied"] is tied
        assert opened["class"] == LANGUAGE_CLASSES[name]
        error = (opened["logits"] - logits).abs().max().item()
        what = f"logits of the export, {opener}, fp32, largest difference, {name}"
        measure(what, export_runs.MEGATRON, error, 1e-4)
    assert logits.std() > 0.1
    assert isinstance(results["answer"], str)
    names = json.loads((variant.export / "model.safetensors.index.json").read_text())["weight_map"]
    assert ("language_model.lm_head.weight" in names) != tied
