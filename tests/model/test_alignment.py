"""Levels of alignment and their gate: against plain torch, and what becomes of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import layout_steps, small_model, switch_steps
from torch import Tensor
from torch.nn import functional

from nvlm.batch import MicroBatch
from nvlm.checkpoint_io import write_checkpoint
from nvlm.data.loading.collate import PackedSample, build_micro_batch
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import CheckpointError, ConvertError
from nvlm.sizes.alignment import GATE, LEVELS_KEY
from nvlm.train.freezing import freeze

NUM_LEVELS = 4
SAMPLES, MIXED = (
    f"stage.alignment={{levels_from: {place}, num_levels: {NUM_LEVELS}}}"
    for place in ("samples", "gate")
)
# Where the tokens of an image's tiles are, beside those of the whole image.
TILES = {
    "tiles in the row": [],
    "tiles behind layers": ["model.deepstack=tiles", "model.language.num_layers=6"],
}
# Conversations with the grids of their images: one of several tiles, none, two, one in turn 2.
Turn = tuple[str, str]
CONVERSATIONS: list[tuple[list[Turn], list[tuple[int, int]]]] = [
    ([("<image>\nWhat is it?", "A cat."), ("Sure?", "Yes.")], [(2, 1)]),
    ([("What is 1 and 1?", "2")], []),
    ([("<image>\n<image>\nDo they differ?", "No."), ("And <image>?", "It does.")], [(1, 1)] * 3),
    ([("Hello", "Hi"), ("<image>\nAnd this?", "A dog.")], [(1, 1)]),
]
LEVELS = [1, None, 3, None]


def packed(config, conversations=CONVERSATIONS, levels=LEVELS) -> MicroBatch:
    """All of them in one row of 512 tokens, as training packs them."""
    encoder, size = SampleEncoder.from_config(config), config.model.vision.image_size
    chance, samples = np.random.default_rng(5), []
    for (turns, grids), level in zip(conversations, levels, strict=True):
        messages = [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        encoded = encoder.encode(messages, grids, alignment_level=level)
        num_tiles = sum(encoder.visual.num_tiles(grid) for grid in grids)
        tiles = chance.integers(0, 256, (num_tiles, 3, size, size), dtype=np.uint8)
        samples.append(PackedSample("", encoded, tiles))
    return build_micro_batch([samples], 512, size, encoder.tokenizer.pad_id)


def trained_losses(model, batch: MicroBatch) -> Tensor:
    return model(batch)[batch.labels >= 0]


def in_place_of_tokens(model, batch: MicroBatch, vectors: dict[int, Tensor]) -> Tensor:
    """Losses of a model without alignment, with `vectors` in the embeddings of those places."""

    def replaced(_: object, __: object, embedded: Tensor) -> Tensor:
        places = torch.tensor([*vectors])
        return embedded.index_copy(0, places, torch.stack([*vectors.values()]).unsqueeze(1))

    handle = model.language_model.embedding.register_forward_hook(replaced)
    vocabulary = switch_steps.VOCABULARY
    plain = replace(batch, tokens=batch.tokens.clamp(max=vocabulary - 1), gated=None)
    try:
        return trained_losses(model, plain)
    finally:
        handle.remove()


def same_gradients(aligned, plain, measure, what: str) -> None:
    theirs = dict(plain.named_parameters())
    worst = 0.0
    for name, parameter in aligned.named_parameters():
        if ".alignment." not in name:
            expected = theirs[name].grad
            worst = max(worst, float((parameter.grad - expected).norm() / expected.norm()))
    measure(f"gradients of the other parameters, {what}", "plain torch", worst, 1e-5)


@pytest.fixture(scope="module")
def plain_config():
    return small_model.small_config("stage.freeze=[]")


def test_levels_of_samples_are_vectors_at_their_beginning(parallel, plain_config, measure):
    config = small_model.small_config("stage.freeze=[]", SAMPLES)
    aligned, plain = (small_model.build(c, parallel) for c in (config, plain_config))
    batch = packed(config)
    starts, levels = batch.document_starts, dict(aligned.named_parameters())[LEVELS_KEY]
    own = levels.detach().clone().requires_grad_()
    vectors = {starts[0]: own[1], starts[2]: own[3]}
    is_vector = (batch.tokens[0] >= switch_steps.VOCABULARY).nonzero()[:, 0].tolist()
    assert is_vector == [*vectors] and batch.gated is None
    found, expected = trained_losses(aligned, batch), in_place_of_tokens(plain, batch, vectors)
    error = float((found - expected).abs().max())
    measure("losses with levels of samples", "vectors put in by a hook", error, 1e-6)
    found.sum().backward()
    expected.sum().backward()
    error = float((levels.grad - own.grad).norm() / own.grad.norm())
    measure("gradients of levels", "plain torch", error, 1e-5)
    same_gradients(aligned, plain, measure, "levels of samples")


def mixtures(plain, batch: MicroBatch, weights: dict[str, Tensor], config) -> dict[int, Tensor]:
    """The paper's formulas, document by document: what the vectors of the row are."""
    encoder = SampleEncoder.from_config(config)
    assistant = encoder.tokenizer.encode("assistant\n")
    table, (visual_nqh, row) = (
        plain.language_model.embedding.word_embeddings.weight,
        (
            plain.visual.encode_tiles(batch.tiles),
            batch.tokens[0].tolist(),
        ),
    )
    # Of the row's tiles those that are whole images of first questions.
    whole = {0: [2], 2: [3, 4]}
    found = {}
    for document, tiles in whole.items():
        start, end = batch.document_starts[document : document + 2]
        # Up to and with the first `assistant\n`.
        size = len(assistant)
        answer = next(p for p in range(start, end) if row[p : p + size] == assistant) + size
        text = [row[p] for p in range(start + 1, answer) if not batch.image_mask[0, p]]
        mean_text_h = table[text].mean(0)
        products_q = (visual_nqh[tiles].mean(0) * mean_text_h).sum(-1)
        inner = functional.gelu(weights["in.weight"] @ products_q + weights["in.bias"])
        shares = (weights["out.weight"] @ inner + weights["out.bias"]).softmax(0)
        levels = weights["levels"]
        mixed = sum(share * level for share, level in zip(shares, levels[:-1], strict=True))
        found[start] = levels[-1] + mixed
    return found


@pytest.mark.parametrize("place", TILES)
def test_the_gate_mixes_levels_as_the_papers_formulas_do(parallel, place, measure):
    config, plain_config = (
        small_model.small_config("stage.freeze=[]", *TILES[place], *switch)
        for switch in ([MIXED], [])
    )
    aligned, plain = (small_model.build(c, parallel) for c in (config, plain_config))
    batch, named = packed(config), dict(aligned.named_parameters())
    keys = {"levels": LEVELS_KEY} | {
        f"{side}.{kind}": f"{GATE}{side}.{kind}"
        for side in ("in", "out")
        for kind in ("weight", "bias")
    }
    with torch.no_grad():  # shares that differ
        for key in keys.values():
            named[key].mul_(3)
    own = {name: named[key].detach().clone().requires_grad_() for name, key in keys.items()}
    vectors = mixtures(plain, batch, own, config)
    found, expected = trained_losses(aligned, batch), in_place_of_tokens(plain, batch, vectors)
    error = float((found - expected).abs().max())
    truth = "the paper's formulas in plain torch"
    measure(f"losses with mixed levels, {place}", truth, error, 1e-5)
    found.sum().backward()
    expected.sum().backward()
    for name, key in keys.items():
        assert float(own[name].grad.norm()) > 1e-6, name
        error = float((named[key].grad - own[name].grad).norm() / own[name].grad.norm())
        measure(f"gradients of the gate's {name}, {place}", "plain torch", error, 1e-4)
    same_gradients(aligned, plain, measure, f"mixed levels, {place}")


@pytest.mark.parametrize("place", TILES)
@pytest.mark.parametrize("switch", [SAMPLES, MIXED])
def test_packed_documents_do_not_see_the_levels_of_others(parallel, switch, place, measure):
    config = small_model.small_config(switch, *TILES[place])
    model = small_model.build(config, parallel)
    together = packed(config)
    with torch.no_grad():
        losses = model(together)[0]
        for document, (conversation, level) in enumerate(zip(CONVERSATIONS, LEVELS)):
            alone = packed(config, [conversation], [level])
            # The same tiles as in the row.
            first = sum(len(packed(config, [c], [1]).tiles) for c in CONVERSATIONS[:document])
            tiles = together.tiles[first : first + len(alone.tiles)]
            own = model(replace(alone, tiles=tiles))[0]
            start, end = together.document_starts[document : document + 2]
            is_trained = alone.labels[0, : end - start] >= 0
            error = (losses[start:end] - own[: end - start])[is_trained].abs().max()
            what = f"losses of document {document} of a row, {switch}, {place}"
            measure(what, "the document alone", float(error), 1e-5)


def test_levels_train_beside_a_frozen_gate(parallel):
    patterns = ["vision_model.*", "language_model.*", f"{GATE}*"]
    config = small_model.small_config(MIXED, f"stage.freeze={patterns}")
    model = small_model.build(config, parallel)
    freeze([model], config, parallel)
    trained_losses(model, packed(config)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    trained = {name for name, gradient in gradients.items() if gradient is not None}
    assert trained == {
        name
        for name in gradients
        if name.startswith("vision_projection.") and not name.startswith(GATE)
    }
    assert LEVELS_KEY in trained and all(bool(gradients[name].any()) for name in trained)


class AlignedSteps(layout_steps.TwoSteps):
    """Both steps with images and vectors."""

    batches = (switch_steps.micro_batches, switch_steps.micro_batches)


def test_a_resumed_step_is_bit_equal_and_levels_and_gate_move(parallel, tmp_path):
    overrides = [f"run.dir={tmp_path}", *layout_steps.OPTIMIZER]
    config = switch_steps.config_of("alignment", *overrides)
    in_one_go = layout_steps.two_steps(config, parallel, save=True, kind=AlignedSteps)
    again = layout_steps.second_step(config, parallel, tmp_path, kind=AlignedSteps)
    assert torch.equal(again["losses"][2], in_one_go["losses"][2])
    ours, theirs = (
        {(key, layer): values for key, layer, _, _, values in result["tensors"]}
        for result in (again, in_one_go)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for key in (LEVELS_KEY, f"{GATE}in.weight", f"{GATE}out.bias"):
        assert float(theirs[key, None].abs().max()) > 1e-6, key


def checkpoint_of(parallel, target, *overrides: str):
    config = small_model.small_config(*overrides)
    model = small_model.build(config, parallel)
    return write_checkpoint(target, {"model": model.sharded_state_dict()}, config), model


@pytest.mark.parametrize(("before", "num_known"), [([], 0), ([SAMPLES], 1), ([MIXED], 5)])
def test_a_gate_begins_anew_and_levels_go_on(parallel, tmp_path, before, num_known):
    from nvlm.model.parts.initialize import initial_tensor
    from nvlm.rows import Place
    from nvlm.sizes.alignment import alignment_rows
    from nvlm.train.checkpoint import find_initial_weights
    from nvlm.train.training import build_with_weights

    checkpoint, saved = checkpoint_of(parallel, tmp_path / "before", *before)
    config = small_model.small_config(MIXED, f"checkpoint.load={checkpoint}")
    assert find_initial_weights(config) == checkpoint
    (model,) = build_with_weights(config, parallel, checkpoint)
    theirs = dict(saved.named_parameters())
    rows = {row.key: row for row in alignment_rows(config)}
    assert len(rows) == 5 and len(theirs.keys() & rows.keys()) == num_known
    for name, parameter in model.named_parameters():
        expected: Any = theirs.get(name)
        if expected is None:
            expected = initial_tensor(config.train.seed, rows[name], Place())
        assert torch.equal(parameter, expected), name


def test_what_was_learned_is_not_lost_without_a_word(parallel, tmp_path):
    from nvlm.train.checkpoint import find_initial_weights

    checkpoint, _ = checkpoint_of(parallel, tmp_path / "mixed", MIXED)
    for other in ([], [SAMPLES], ["stage.alignment={levels_from: gate, num_levels: 8}"]):
        config = small_model.small_config(*other, f"checkpoint.load={checkpoint}")
        said = r"has learned stage.alignment of 4 levels \(num_levels\) from gate .* would be lost"
        with pytest.raises(CheckpointError, match=said):
            find_initial_weights(config)


def test_adapters_are_merged_beside_them_and_exports_say_why_not(parallel, tmp_path):
    from nvlm.convert.adapters.merge import merge_adapters
    from nvlm.convert.adapters.to_peft import convert_to_peft
    from nvlm.convert.megatron.reader import CheckpointReader
    from nvlm.convert.to_hf import convert_to_hf
    from nvlm.convert.verify import verify

    adapters = "stage.adapters={'language_model.*.linear_qkv.weight': {rank: 4}}"
    checkpoint, _ = checkpoint_of(parallel, tmp_path / "adapted", MIXED, adapters)
    with pytest.raises(ConvertError, match=r"has levels of alignment .* `nvlm convert merge"):
        convert_to_peft(checkpoint, tmp_path / "peft")
    merged = merge_adapters(checkpoint, tmp_path / "merged")
    assert {LEVELS_KEY, f"{GATE}in.weight"} <= {*CheckpointReader(merged).keys()}
    with pytest.raises(ConvertError, match=r"stage\.alignment: exported models"):
        convert_to_hf(merged, tmp_path / "export")
    with pytest.raises(ConvertError, match="no Hugging Face folder has"):
        verify(merged, merged)
