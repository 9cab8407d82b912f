"""Hugging Face folders answer: as the checkpoint they came from, and as transformers does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import export_runs, questions, session_case, spawn
from PIL import Image
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from nvlm.convert.export_config import config_of_export, stop_ids_of_export
from nvlm.convert.hf.folder import HfFolder
from nvlm.errors import CheckpointError, ConfigError, ConvertError
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.generate.session import Session
from nvlm.parallel.groups import shut_down

# Large random weights: answers that vary from token to token.
OVERRIDES = ["model.vision.num_layers=2", "model.language.num_layers=2"]
MAX_NEW_TOKENS = 8


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    made = export_runs.make_export(tmp_path_factory.mktemp("exports"), OVERRIDES)
    shut_down()
    return made


@pytest.fixture
def engine(exported):
    with Engine(exported.export) as engine:
        engine.load()
        yield engine


def mixed_questions(folder: Path, count: int) -> list[tuple[str, list, list[str]]]:
    """(question, earlier turns, image files): text, an image of a tile or of many, several images,
    several turns."""
    noise = np.random.default_rng(0)

    def image(columns: int, rows: int) -> str:
        size = int(noise.integers(40, 110))
        width, height = columns * size, rows * size
        path = folder / f"{len(list(folder.iterdir()))}.png"
        pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return str(path)

    found = []
    for number in range(count):
        ask = f"Question {number}: {'what is it? ' * (1 + number % 7)}"
        match number % 5:
            case 0:
                found.append((ask, [], []))
            case 1:
                found.append((f"<image>\n{ask}", [], [image(1, 1)]))
            case 2:
                found.append((f"<image>\n{ask}", [], [image(5, 3)]))
            case 3:
                several = [image(1, 1), image(5, 3), image(1, 1)][: 2 + number % 2]
                found.append((f"{'<image> and ' * len(several)}{ask}", [], several))
            case _:
                before = [("<image>\nFirst?", "An answer."), ("Then?", "Yes: 12.")]
                found.append((ask, before, [image(1, 1)]))
    return found


def prepared(engine: Engine, question: str, history: list, images: list[str]):
    messages = []
    for earlier, answer in history:
        messages += [{"role": "user", "content": earlier}]
        messages += [{"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": question})
    pixels = [np.array(Image.open(file).convert("RGB")) for file in images]
    return engine.prepare(messages, pixels, MAX_NEW_TOKENS)


def test_greedy_answers_are_those_of_transformers(exported, engine, tmp_path):
    """All asked at once here, and one by one there, where nothing of nvlm computes."""
    (tmp_path / "images").mkdir()
    asked = mixed_questions(tmp_path / "images", 50)
    cases = {"questions": asked, "max_new_tokens": MAX_NEW_TOKENS, "num_logits": 0}
    expected = export_runs.run_client("generate_client.py", exported.export, cases, tmp_path)
    prompts = [prepared(engine, *question) for question in asked]
    assert [prompt.tokens.tolist() for prompt in prompts] == expected["prompts"]
    assert {len(prompt.tiles) for prompt in prompts} >= {0, 1, 7}
    with Session(engine) as session:
        sampling = Sampling(MAX_NEW_TOKENS)
        answers = questions.answer_all(
            session, {str(i): (prompt, sampling) for i, prompt in enumerate(prompts)}
        )
    assert [list(answer.token_ids) for answer in answers.values()] == expected["answers"]
    assert len({token for ids in expected["answers"] for token in ids}) > 40


@pytest.mark.slow
def test_sampled_tokens_follow_transformers_logits(exported, engine, tmp_path):
    """Of 600 seeds each first token comes as often as its share, within 5 deviations."""
    (tmp_path / "images").mkdir()
    asked = mixed_questions(tmp_path / "images", 2)
    cases = {"questions": asked, "max_new_tokens": 1, "num_logits": 2}
    expected = export_runs.run_client("generate_client.py", exported.export, cases, tmp_path)
    count, temperature, top_p, top_k = 600, 0.9, 0.8, 40
    for question, logits in zip(asked, expected["next_logits"], strict=True):
        prompt = prepared(engine, *question)
        scores = logits[None]
        for warp in (
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(top_k),
            TopPLogitsWarper(top_p),
        ):
            scores = warp(None, scores)
        shares = scores.softmax(-1)[0].double()
        with Session(engine) as session:
            answers = questions.answer_all(
                session,
                {
                    str(seed): (prompt, Sampling(1, temperature, top_p, top_k, seed))
                    for seed in range(count)
                },
            )
        chosen = torch.tensor([answer.token_ids[0] for answer in answers.values()])
        found = chosen.bincount(minlength=len(shares)).double()
        assert (found > 0).sum() > 5
        assert found[shares == 0].sum() == 0
        deviation = (count * shares * (1 - shares)).sqrt()
        assert ((found - count * shares).abs() <= 5 * deviation + 1e-9).all()


def test_an_export_has_the_weights_and_settings_of_its_checkpoint(exported, engine):
    ours = engine.config
    opened = {name: value.clone() for name, value in tensors_of(engine)}
    with Engine(exported.checkpoint) as original:
        original.load()
        expected = dict(tensors_of(original))
        theirs = original.config
    assert opened.keys() == expected.keys()
    assert all(torch.equal(opened[name], expected[name]) for name in expected)
    for section in ("vision", "connector", "language"):
        differing = {
            key
            for key, value in getattr(theirs.model, section).model_dump().items()
            if getattr(ours.model, section).model_dump()[key] != value
        }
        # Of random first values, which exports do not say; a head's width, which they always do.
        assert differing <= {"init_std", "layer_scale_init", "kv_channels"}
    assert ours.model.language.head_dim == theirs.model.language.head_dim
    for key in ("max_num_tiles", "use_thumbnail", "tile_tags", "image_boundary", "system_message"):
        assert getattr(ours.stage, key) == getattr(theirs.stage, key), key
    assert ours.train.precision == theirs.train.precision


OTHER_DECODERS = {
    "qwen3": ["model.language.qkv_bias=false", "model.language.qk_layernorm=true"],
    "llama3": ["model.language.qkv_bias=false", "model.language.rope_scaling.factor=8"],
    "yarn": [
        "model.language.rope_scaling={kind: yarn, factor: 4, original_max_position_embeddings: 64}",
        "model.language.max_position_embeddings=256",
        "stage.sequence_length=256",
    ],
    "tied": ["model.language.share_embeddings_and_output_weights=true"],
}


@pytest.mark.parametrize("decoder", OTHER_DECODERS)
def test_exports_of_other_decoders_open(decoder, tmp_path):
    overrides = [*OVERRIDES, *OTHER_DECODERS[decoder], "model.language.kv_channels=48"]
    made = export_runs.make_export(tmp_path, overrides)
    shut_down()
    with Engine(made.checkpoint) as engine:
        engine.load()
        expected = {name: value.clone() for name, value in tensors_of(engine)}
        language = engine.config.model.language
        prompts = questions.random_prompts(engine.config, engine.encoder.tokenizer.image_id, 3)
        answers = [engine.answer(prompt, MAX_NEW_TOKENS) for prompt in prompts]
    with Engine(made.export) as engine:
        engine.load()
        found = dict(tensors_of(engine))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        opened = engine.config.model.language
        for key in ("kv_channels", "qk_layernorm", "qkv_bias", "rope_base", "rope_scaling"):
            assert getattr(opened, key) == getattr(language, key), key
        assert [engine.answer(prompt, MAX_NEW_TOKENS) for prompt in prompts] == answers


def tensors_of(engine: Engine):
    for name, value in engine.model.state_dict().items():
        if isinstance(value, torch.Tensor):
            yield name, value


@pytest.mark.parallel
@pytest.mark.parametrize("tensor, pipeline", [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_an_export_opens_at_any_layout(tensor, pipeline, exported, tmp_path):
    with Engine(exported.checkpoint) as engine:
        engine.load()
        expected = json.loads(json.dumps(session_case.answers(engine)))
    out = tmp_path / "answers"
    program = (session_case.__file__, exported.export, out, str(tensor), str(pipeline))
    spawn.run_program_or_fail(2, *program, log=tmp_path / "log")
    assert json.loads(out.with_name("answers.0").read_text()) == expected


def edited(exported, target: Path, change) -> Path:
    """A copy of the export, its weights links, with another `config.json`."""
    shutil.copytree(exported.export, target, copy_function=lambda a, b: Path(b).symlink_to(a))
    config = json.loads((exported.export / "config.json").read_text())
    change(config)
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_what_an_earlier_folder_does_not_say_is_as_released(exported, tmp_path):
    """The released `config.json` has none of our keys; `max_dynamic_patch` and others it has."""

    def as_released(config: dict) -> None:
        for key in ("tile_tags", "image_boundary", "system_message", "image_token"):
            del config[key]
        del config["projector_layer_norm_eps"], config["vision_config"]["norm_type"]
        del config["vision_config"]["num_stored_attention_heads"]
        config["vision_config"]["norm_type"] = "rms_norm"

    config = config_of_export(HfFolder(edited(exported, tmp_path / "old", as_released)))
    stage = config.stage
    assert (stage.tile_tags, stage.image_boundary, stage.max_num_tiles) == ("1d", "merged", 6)
    assert stage.system_message == "Answer the questions." and stage.use_thumbnail
    assert config.model.image_token == "<|vision_pad|>"
    assert config.model.connector.norm_epsilon == 1e-5
    assert config.model.vision.num_stored_attention_heads == 8


def test_another_boundary_and_number_of_tiles_come_from_the_folder(exported, tmp_path):
    def change(config: dict) -> None:
        config |= {"image_boundary": "separate", "system_message": None, "max_dynamic_patch": 3}

    folder = edited(exported, tmp_path / "other", change)
    engine = Engine(folder)
    assert engine.encoder.system_message is None
    assert engine.encoder.image_boundary == "separate"
    assert engine.config.stage.max_num_tiles == 3
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text('{"eos_token_id": [1022, 1019]}')
    assert Engine(folder).stop_ids == {1022, 1019}


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, ConvertError, r"NVLM_X, NVLM_H answers"),
        ({"max_dynamic_patch": "six"}, ConfigError, r"config.json: stage.max_num_tiles"),
        ({"tile_tags": "2d"}, ConfigError, r"config.json: stage.tile_tags"),
        ({"logits_scaling": 2.0}, ConvertError, "logits_scaling"),
        ({"ps_version": "v1"}, ConvertError, "ps_version"),
        ({"force_image_size": 448}, ConvertError, "force_image_size"),
        ({"llm_config": None}, ConvertError, "has no llm_config"),
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused(change, error, said, exported, tmp_path):
    folder = edited(exported, tmp_path / "broken", lambda config: config.update(change))
    with pytest.raises(error, match=said):
        Engine(folder)


def test_other_folders_are_refused(exported, tmp_path):
    for name in ("vision", "language"):
        with pytest.raises(ConvertError, match=r"NVLM_X, NVLM_H answers here"):
            Engine(exported.export.with_name(name))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Engine(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "end"}')
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConvertError, match="neither"):
        Engine(tmp_path)
    shutil.copy(exported.export / "model.safetensors.index.json", tmp_path)
    for file in exported.export.glob("*.safetensors"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ConvertError, match="eos_token_id is 'end', expected token ids"):
        stop_ids_of_export(HfFolder(tmp_path))


def test_a_tensor_that_holds_no_number_is_named(exported, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = edited(exported, tmp_path / "nan", lambda config: None)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 3] = float("nan")
    file.unlink()
    save_file(tensors, file)
    with Engine(folder) as engine, pytest.raises(ConvertError, match=f"{name} holds NaN"):
        engine.load()
