"""Exports of NVLM-X and NVLM-H: prompts, logits and answers by their own modelling files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import export_runs, small_folders
from helpers.connectors import CONNECTORS
from helpers.encoders import SIGLIP
from helpers.export_runs import Exported
from helpers.timm_folders import make_timm_folder
from torch import Tensor

from nvlm.batch import MicroBatch
from nvlm.config import RunConfig
from nvlm.config.changed import changed_section
from nvlm.convert import convert_from_hf, convert_from_nvlm, convert_to_hf
from nvlm.convert.export.config import serving_differences
from nvlm.convert.export_config import config_of_export
from nvlm.convert.hf.folder import HfFolder
from nvlm.convert.verify import verify
from nvlm.data.loading.collate import PackedSample, build_micro_batch
from nvlm.data.text.encode import EncodedPrompt, EncodedSample, SampleEncoder
from nvlm.errors import ConvertError
from nvlm.generate.engine import Engine

FUSED = ["model.cross_attention.layer_interval=2", "stage.max_tiles_per_sequence=24"]
FUSIONS = {
    "NVLM_X": [*FUSED, "model.fusion=cross_attention", "model.connector={kind: linear}"],
    "NVLM_H": [*FUSED, "model.fusion=hybrid", "model.cross_attention.num_query_groups=2"],
}
SYSTEM = "Answer the questions."
# Question, history, tiles of each image.
CONVERSATIONS: list[tuple[str, list[tuple[str, str]], list[int]]] = [
    ("<image>\nWhat is it?", [], [1]),
    ("<image>\nRead the total.", [], [5]),
    ("Here: <image> and <image><image>", [], [3, 1, 7]),
    ("And <image> that?", [("<image>\nWhat is this?", "A cat."), ("Sure?", " Yes.")], [3, 1]),
    ("What is 2 + 2?", [("And 3?", "<image>, once")], []),
]


@dataclass(frozen=True)
class Fused:
    """An export whose gates are open, its model in transformers, and Megatron-core's."""

    name: str
    export: Exported
    model: Any
    tokenizer: Any


# In the ordinary suite one stands for both: its images are in the sequence and beside it.
_MODELS = [pytest.param("NVLM_X", marks=pytest.mark.slow), "NVLM_H"]


@pytest.fixture(scope="module", params=_MODELS)
def fused(request, tmp_path_factory: pytest.TempPathFactory) -> Fused:
    export = export_runs.make_export(tmp_path_factory.mktemp("fused"), FUSIONS[request.param])
    return _opened(request.param, export, tmp_path_factory.getbasetemp() / "modules")


def _opened(name: str, export: Exported, modules: Path) -> Fused:
    from transformers import AutoModel, AutoTokenizer, dynamic_module_utils

    _open_gates(export.export)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
        model = AutoModel.from_pretrained(export.export, trust_remote_code=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(export.export, trust_remote_code=True)
    assert type(model).__name__ == f"{name}_Model"
    return Fused(name, export, model, tokenizer)


def _open_gates(export: Path) -> None:
    """Of a new model they are shut, and nothing would be compared."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(3)
    for file in export.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if ".cross_attention." in name:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.9 + 0.2 * noise if tensor.dim() == 1 else 0.1 * noise)
        save_file(tensors, file, metadata={"format": "pt"})


def _messages(question: str, history: list[tuple[str, str]]) -> list[dict[str, str]]:
    messages = []
    for asked, answered in history:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*messages, {"role": "user", "content": question}]


@pytest.fixture(scope="module")
def served_tokenizer():
    """Qwen2's, as a client of an export has it; made once: it takes seconds."""
    from helpers.qwen_tokenizer import build_qwen_tokenizer

    return build_qwen_tokenizer()


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("image_boundary", ["block", "merged", "separate"])
@pytest.mark.parametrize("tile_tags", ["1d", "none"])
def test_prompts_are_the_data_pipelines(
    qwen_tokenizer, served_tokenizer, name, image_boundary, tile_tags
):
    from nvlm.convert.hf_files.chat_format import CHATML
    from nvlm.convert.hf_files.prompts_beside import BesidePromptEncoder

    config = _unchecked(
        name, {"stage.image_boundary": image_boundary, "stage.tile_tags": tile_tags}
    )
    encoder = SampleEncoder.from_config(config, qwen_tokenizer)
    settings = SimpleNamespace(
        image_token="<|vision_pad|>",
        max_dynamic_patch=6,
        image_boundary=image_boundary,
        tile_tags=tile_tags,
        use_thumbnail=True,
        fusion=config.model.fusion,
        chat_format=CHATML,
    )
    size = config.model.num_tokens_per_tile
    exported = BesidePromptEncoder(served_tokenizer, settings, size)
    for question, history, num_tiles in CONVERSATIONS:
        ids = exported.conversation(question, history, num_tiles, SYSTEM)
        tokens, _, beside = encoder.encode_prompt_beside(
            _messages(question, history), export_runs.grids(encoder, num_tiles)
        )
        assert ids == tokens.tolist()
        assert beside is not None
        assert ids.beside == {
            "input_ids": beside.tokens.tolist(),
            "tiles": beside.tiles.tolist(),
            "sights": [list(sight) for sight in beside.sights],
        }


def _unchecked(name: str, changes: dict[str, Any]) -> RunConfig:
    """Qwen's vocabulary is larger than the small model's."""
    config = small_folders.convert_config(*FUSIONS[name])
    return changed_section(config, {"model.language.vocab_size": 152064, **changes})


def _prompt(fused: Fused, question: str, num_tiles: list[int]) -> tuple[EncodedPrompt, Any, Tensor]:
    """For Megatron-core; token ids and pixel values for transformers."""
    encoder = SampleEncoder.from_config(config_of_export(HfFolder(fused.export.export)))
    size = encoder.visual.image_size
    random = np.random.default_rng(len(num_tiles))
    tiles = random.integers(0, 256, (sum(num_tiles), 3, size, size), dtype=np.uint8)
    tokens, image_mask, beside = encoder.encode_prompt_beside(
        _messages(question, []), export_runs.grids(encoder, num_tiles)
    )
    ids = fused.model.build_prompt_ids(fused.tokenizer, question, (), num_tiles)
    assert ids == tokens.tolist()
    values = json.loads((fused.export.export / "preprocessor_config.json").read_text())
    mean, deviation = (
        torch.tensor(values[key])[:, None, None] for key in ("image_mean", "image_std")
    )
    pixels = (torch.from_numpy(tiles) / 255 - mean) / deviation
    return EncodedPrompt(tokens, image_mask, tiles, beside), ids, pixels


QUESTIONS = {
    "several images": ("Here: <image> and\n<image>\nWhat differs?", [5, 3]),
    "single tile": ("<image>\nWhat?", [1]),
    "text": ("What is 2 + 2?", []),
}


def test_logits_and_answers_equal_megatrons(fused: Fused, measure):
    """Of the export as Megatron-core reads it, token by token with both caches."""
    what = f"logits of the export of {fused.name}, largest difference"
    measure(what, "the export in Megatron-core", _largest_difference(fused, QUESTIONS), 1e-4)


def test_another_encoder_and_connector(tmp_path: Path, tmp_path_factory, measure):
    """SigLIP and Honeybee's C-Abstractor in an NVLM-H, whose files are those of three tables."""
    overrides = [*FUSIONS["NVLM_H"], SIGLIP, *CONNECTORS["c_abstractor"]]
    config = small_folders.convert_config(*overrides)
    make_timm_folder(tmp_path / "vision", config.model.vision)
    small_folders.make_language_folder(tmp_path / "language", config)
    checkpoint = convert_from_hf(
        tmp_path / "vision", tmp_path / "language", config, tmp_path / "checkpoint"
    )
    export = Exported(config, checkpoint, convert_to_hf(checkpoint, tmp_path / "export"))
    fused = _opened("NVLM_H", export, tmp_path_factory.getbasetemp() / "modules")
    question = {name: QUESTIONS[name] for name in ("several images",)}
    what = "logits of the export of NVLM_H with SigLIP and a C-Abstractor, largest difference"
    measure(what, "the export in Megatron-core", _largest_difference(fused, question), 1e-4)


def _largest_difference(fused: Fused, questions: Mapping[str, tuple[str, list[int]]]) -> float:
    """Of logits; answers are compared token by token."""
    engine = Engine(fused.export.export)
    engine.load()
    largest = 0.0
    for question, num_tiles in questions.values():
        prompt, ids, pixels = _prompt(fused, question, num_tiles)
        with torch.no_grad():
            expected = engine.model(_micro_batch(engine, prompt), return_logits=True)
            images = _images(pixels, ids)
            logits = fused.model(input_ids=torch.tensor([ids]), **images).logits
        assert expected.std() > 0.1
        largest = max(largest, float((logits - expected).abs().max()))
        answer = engine.generate(ids, torch.from_numpy(prompt.tiles), 12, (), prompt.beside)
        found = fused.model.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=12, eos_token_id=-1, **images
        )
        assert found[0].tolist() == answer
    engine.close()
    return largest


def _micro_batch(engine: Engine, prompt: EncodedPrompt) -> MicroBatch:
    labels = np.full_like(prompt.tokens, -100)
    sample = EncodedSample(prompt.tokens, labels, prompt.image_mask, prompt.beside)
    packed = PackedSample("q", sample, prompt.tiles)
    size = engine.encoder.visual.image_size
    return build_micro_batch([[packed]], len(prompt.tokens), size, 0, has_beside=True)


def _images(pixels: Tensor, *ids: Any) -> dict[str, Any]:
    if not len(pixels):
        return {}
    return {"pixel_values": pixels, "beside": [one.beside for one in ids]}


def test_cross_attention_changes_answers(fused: Fused):
    """Else the comparison above would be of the language model alone."""
    _, ids, pixels = _prompt(fused, *QUESTIONS["several images"])
    tokens = torch.tensor([ids])
    with torch.no_grad():
        whole = fused.model(input_ids=tokens, **_images(pixels, ids)).logits
        others = fused.model(input_ids=tokens, **_images(pixels.flip(0), ids)).logits
        blind = {**ids.beside, "sights": []}
        unseen = fused.model(input_ids=tokens, pixel_values=pixels, beside=[blind]).logits
    first = ids.beside["sights"][0][0]
    assert (whole - others)[:, -1].abs().max() > 0.01
    assert (whole - unseen)[:, -1].abs().max() > 0.01
    # What stands before the first image sees none.
    assert torch.equal(whole[:, :first], unseen[:, :first])


def test_text_alone_is_the_language_models(fused: Fused):
    tokens = torch.tensor([fused.model.build_prompt_ids(fused.tokenizer, "Hello!")])
    with torch.no_grad():
        ours = fused.model(input_ids=tokens).logits
        assert torch.equal(ours, fused.model.language_model(input_ids=tokens).logits)


def test_caches_batches_and_beams(fused: Fused):
    model = fused.model
    _, long, many = _prompt(fused, *QUESTIONS["several images"])
    _, short, one = _prompt(fused, *QUESTIONS["single tile"])
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([long]), **_images(many, long)).logits
        # A prompt in two calls: the second goes on from the first one's cache.
        begun = model(input_ids=torch.tensor([long[:-4]]), use_cache=True, **_images(many, long))
        rest = model(
            input_ids=torch.tensor([long[-4:]]), past_key_values=begun.past_key_values
        ).logits
        torch.testing.assert_close(rest, whole[:, -4:], atol=2e-5, rtol=0)
        alone = [
            model.generate(
                input_ids=torch.tensor([ids]), max_new_tokens=5, eos_token_id=-1,
                **_images(pixels, ids),
            )
            for ids, pixels in ((short, one), (long, many))
        ]  # fmt: skip
        # A shorter prompt is padded at its left.
        padding = len(long) - len(short)
        rows = torch.tensor([[0] * padding + list(short), list(long)])
        mask = torch.tensor([[0] * padding + [1] * len(short), [1] * len(long)])
        images = _images(torch.cat([one, many]), short, long)
        together = {"input_ids": rows, "attention_mask": mask, **images}
        found = model.generate(max_new_tokens=5, eos_token_id=-1, pad_token_id=0, **together)
        assert torch.equal(found, torch.cat(alone))
        beams = model.generate(
            max_new_tokens=5, eos_token_id=-1, pad_token_id=0, num_beams=3, **together
        )
        assert beams.shape == (2, 5)


def test_training_reaches_cross_attention(fused: Fused):
    _, ids, pixels = _prompt(fused, *QUESTIONS["several images"])
    tokens = torch.tensor([ids])
    gradients = []
    for _ in range(2):
        fused.model.zero_grad()
        fused.model(input_ids=tokens, labels=tokens, **_images(pixels, ids)).loss.backward()
        layer = fused.model.language_model.model.layers[1]
        gradients.append(layer.cross_attention.gate.grad.clone())
        fused.model.language_model.gradient_checkpointing_enable()
        fused.model.train()
    fused.model.language_model.gradient_checkpointing_disable()
    fused.model.eval().zero_grad(set_to_none=True)
    assert gradients[0].abs() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


def test_chat(fused: Fused):
    pixels = _prompt(fused, *QUESTIONS["several images"])[2]
    settings = {"max_new_tokens": 6, "do_sample": False}
    question, num_tiles = QUESTIONS["several images"]
    answer, history = fused.model.chat(
        fused.tokenizer, pixels, question, settings, None, True, num_tiles
    )
    assert history == [(question, answer)]
    features = fused.model.extract_feature(pixels)
    assert answer == fused.model.chat(
        fused.tokenizer, None, question, settings, None, False, num_tiles, visual_features=features
    )
    assert isinstance(fused.model.chat(fused.tokenizer, None, "Hello!", settings), str)


def test_images_without_what_stands_beside_are_refused(fused: Fused):
    _, ids, pixels = _prompt(fused, *QUESTIONS["several images"])
    tokens = torch.tensor([ids])
    with pytest.raises(ValueError, match="images need beside="):
        fused.model(input_ids=tokens, pixel_values=pixels)
    with pytest.raises(ValueError, match="prompts of 8 tiles, and 7 given"):
        fused.model(input_ids=tokens, pixel_values=pixels[:-1], beside=[ids.beside])


def test_an_export_is_read_back(fused: Fused, tmp_path: Path):
    config = fused.export.config
    checkpoint = convert_from_nvlm(fused.export.export, config, tmp_path / "checkpoint")
    again = convert_to_hf(checkpoint, tmp_path / "again")
    for other in (checkpoint, again):
        assert verify(fused.export.export, other).differences == []
    read = config_of_export(HfFolder(again)).model
    assert read.fusion == config.model.fusion
    assert read.num_cross_attention_groups == config.model.num_cross_attention_groups
    assert read.cross_attention_layers == config.model.cross_attention_layers
    # Not what a language model begins with: its gates are shut.
    assert len(verify(fused.export.checkpoint, again).differences) == 2 * 6


def test_another_fusion_is_refused(fused: Fused, tmp_path: Path):
    (other,) = set(FUSIONS) - {fused.name}
    config = small_folders.convert_config(*FUSIONS[other])
    with pytest.raises(ConvertError, match=rf"architectures \['{fused.name}'\].*needs \['{other}'"):
        convert_from_nvlm(fused.export.export, config, tmp_path / "checkpoint")


def test_no_server_for_the_released_model_loads_it(fused: Fused):
    values = json.loads((fused.export.export / "config.json").read_text())
    assert values["architectures"] == [values["model_type"]] == [fused.name]
    (first, *_) = serving_differences(fused.export.config)
    assert first.startswith(f"vLLM cannot load it: it has no {fused.name}")
    card = (fused.export.export / "README.md").read_text()
    assert f"{fused.name.replace('_', '-')}'s design" in card
    assert "vLLM cannot load it" in card and "vllm serve" not in card
