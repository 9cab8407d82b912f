"""What a run can say. Every section refuses unknown keys; whatever can be derived is a property.

Sizes follow Megatron-core's names (`ffn_hidden_size`, `num_query_groups`, ...). Lengths are counted
in tokens, image sizes in pixels.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from nvlm.config.values import (
    Count,
    CountOrZero,
    Decay,
    FolderName,
    Name,
    NumLayers,
    NumTiles,
    NumWorkers,
    PathText,
    Positive,
    PositiveOrZero,
    Seed,
    Share,
    Switch,
    Text,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionConfig(Section):
    """InternViT. configs/model has the 6B-448px-V1-5 (in nvlm_d_72b.yaml) and the 300M-448px."""

    num_layers: NumLayers
    hidden_size: Count
    ffn_hidden_size: Count
    num_attention_heads: Count
    # Heads that checkpoints store: the real ones and then zero ones. Constant, so that the model's
    # shape never depends on the tensor-parallel size; the released NVLM-D stores 25 as 32.
    num_stored_attention_heads: Count
    image_size: Count = 448
    patch_size: Count = 14
    # The variant: the 6B has RMSNorm, norms of queries and keys over all heads together, and no
    # bias on q, k and v; the 300M has LayerNorm, no such norms, and the bias.
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    qk_layernorm: Switch = True
    qkv_bias: Switch = False
    norm_epsilon: Positive = 1e-6
    layer_scale_init: Positive = 0.1
    init_std: Positive = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_patches(self) -> int:
        """Patches of a tile, the class token not counted."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens_per_tile(self) -> int:
        """Tokens that the language model sees per tile: pixel shuffle merges 2 x 2 patches."""
        return self.num_patches // 4


class ProjectorConfig(Section):
    """LayerNorm, linear, GELU, linear; no biases in the linears (paper section 4.5)."""

    ffn_hidden_size: Count
    norm_epsilon: Positive = 1e-6
    init_std: Positive = 0.014


class LanguageConfig(Section):
    """A Qwen2-style decoder (also Yi: `qkv_bias: false`)."""

    num_layers: NumLayers
    hidden_size: Count
    ffn_hidden_size: Count
    num_attention_heads: Count
    num_query_groups: Count
    vocab_size: Count
    rope_base: Positive = 1_000_000.0
    norm_epsilon: Positive = 1e-6
    qkv_bias: Switch = True
    # One matrix for token embeddings and output layer (Qwen2's small sizes).
    share_embeddings_and_output_weights: Switch = False
    max_position_embeddings: Count = 32768
    init_std: Positive = 0.014

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


class ModelConfig(Section):
    name: Name
    vision: VisionConfig
    projector: ProjectorConfig
    language: LanguageConfig
    # A folder with a Hugging Face tokenizer, or a hub name.
    tokenizer: PathText
    # The special token whose positions image embeddings overwrite.
    image_token: Name = "<|vision_pad|>"
    # `auto`: Transformer Engine on a GPU where it is installed, in bf16; else `local`.
    layer_implementation: Literal["auto", "local", "transformer_engine"] = "auto"


def _kind_of_entry(entry: object) -> str:
    return "settings" if isinstance(entry, dict | SourceConfig) else "weight"


# What follows a source's name in a blend.
BlendEntry = Annotated[
    Annotated[Positive, Tag("weight")] | Annotated["SourceConfig", Tag("settings")],
    Discriminator(_kind_of_entry),
]


class SourceConfig(Section):
    """One source of a blend with its settings, or a blend that counts as one source."""

    weight: Positive = 1.0
    # Folder (or one shard) under `data.root`/`data.split`, or an absolute one. None: the name.
    path: PathText | None = None
    # Most tiles per image; None: the stage's.
    max_num_tiles: NumTiles | None = None
    # Prompt pool that asks this source's samples; None: the pool named like the sample's task.
    prompts: Name | None = None
    # Factor on the loss of its tokens.
    loss_weight: Positive = 1.0
    # Passes over its samples after which it is used up. None: as many as the run takes.
    max_epochs: Positive | None = None
    # The sources below this one, their weights relative to each other. They take over its path,
    # max_num_tiles, prompts and max_epochs where they have none; loss_weight multiplies.
    blend: dict[Name, BlendEntry] | None = Field(default=None, min_length=1)


class DataConfig(Section):
    """`root/split/*.tar` is one source; `root/split/NAME/*.tar` is one source per folder."""

    root: PathText
    split: FolderName = "train"
    # Source name -> weight, or its settings. None: every source found, weighted by its number of
    # samples.
    blend: dict[Name, BlendEntry] | None = Field(default=None, min_length=1)
    num_workers: NumWorkers = 2
    # Samples that the packer looks at together. Part of the order: changing it changes the run.
    packing_window: Count = 512
    # Where indexes are kept. None: `run.dir/index`.
    index_dir: PathText | None = None
    # YAML file of prompt pools. None: the ones that come with nvlm.
    prompt_pools: PathText | None = None
    # `fast` resizes with torch (within 2/255 of Pillow); `exact` is bit-equal to Pillow's bicubic.
    image_resize: Literal["fast", "exact"] = "fast"
    # Images of more pixels are skipped as decompression bombs.
    max_image_megapixels: Positive = 100.0
    # Frames taken from a video, evenly spaced; each is one tile.
    num_video_frames: Count = 8
    # A run whose share of skipped samples exceeds this stops and says why. 1: never.
    max_skipped_share: Share = 0.05


class StageConfig(Section):
    """One training stage: what trains, and how images and text become a sequence."""

    name: Name
    # fnmatch patterns over parameter names, such as `vision_model.*`. No match is an error.
    freeze: list[Name] = []
    sequence_length: Count
    # Most tiles cut from an image, the thumbnail not counted. 1: the image is squashed to a tile.
    max_num_tiles: NumTiles = 6
    use_thumbnail: Switch = True
    # The paper's designs (section 4.2): 1-D `<tile_1>`, 2-D grid `<tile_x0_y0>`, 2-D bounding box.
    tile_tags: Literal["none", "1d", "2d_grid", "2d_box"] = "1d"
    # `merged` tokenises `<Image><tile_1>` as one text, as transformers and vLLM do when serving;
    # `separate` tokenises them one by one, as NVIDIA's Megatron code did.
    image_boundary: Literal["merged", "separate"] = "merged"
    # System message of conversations that bring none of their own. None: no system turn.
    system_message: Text | None = "Answer the questions."
    # Several samples per sequence, with document masks and restarted positions.
    packing: Switch = True
    # Tile budget of a sequence. None: as many as fit in its length.
    max_tiles_per_sequence: Count | None = None


class ParallelConfig(Section):
    """Process layout. The data-parallel size is what the world size leaves."""

    tensor: Count = 1
    pipeline: Count = 1
    # Parts of the decoder that each pipeline stage holds, interleaved (virtual pipeline stages).
    virtual_pipeline: Count = 1
    # Megatron's sequence parallelism (activations split over the tensor-parallel group).
    sequence: Switch = False

    @property
    def model_parallel_size(self) -> int:
        return self.tensor * self.pipeline


class OptimizerConfig(Section):
    """AdamW with decoupled weight decay."""

    lr: Positive
    min_lr: PositiveOrZero = 0.0
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    epsilon: Positive = 1e-8
    weight_decay: PositiveOrZero = 0.1
    clip_grad: Positive = 10.0
    # fnmatch pattern over parameter names -> factor on the learning rate. No match is an error.
    lr_multipliers: dict[Name, Positive] = {}
    # The same for weight decay; 0 turns it off. Norms, biases and other vectors have none anyway.
    weight_decay_multipliers: dict[Name, PositiveOrZero] = {}


class ScheduleConfig(Section):
    """Linear warm-up from 0 to `lr`, then cosine to `min_lr`."""

    warmup_steps: CountOrZero = 0
    # Step at which the cosine reaches `min_lr`. None: `train.steps`.
    decay_steps: Count | None = None


class ModuleRecomputeConfig(Section):
    """What of one module's activations is computed again in the backward pass instead of kept."""

    # selective: the core attention; full: whole layers.
    granularity: Literal["none", "selective", "full"] = "none"
    # With `full`: layers of each pipeline stage that are recomputed. None: all.
    num_layers: Count | None = None


class RecomputeConfig(Section):
    """Activation recomputation. A frozen vision encoder keeps no activations to begin with."""

    vision: ModuleRecomputeConfig = ModuleRecomputeConfig()
    language: ModuleRecomputeConfig = ModuleRecomputeConfig()


class TrainConfig(Section):
    steps: Count
    # In sequences (packs where the stage packs).
    global_batch_size: Count
    micro_batch_size: Count = 1
    precision: Literal["fp32", "bf16"] = "bf16"
    # What counts equally in the loss: every trained token, every sample, or every sample by the
    # square root of its trained tokens.
    loss_weighting: Literal["token", "sample", "sqrt_length"] = "token"
    seed: Seed = 1234
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    recompute: RecomputeConfig = RecomputeConfig()


class CheckpointConfig(Section):
    # Weights to start from: a checkpoint folder, a run folder, or `random`. Ignored on resume.
    load: PathText | None = None
    # Steps between checkpoints; one is always written at the end.
    every: Count = 1000
    # Newest checkpoints kept; None: all.
    keep: Count | None = None


class LogConfig(Section):
    every: Count = 1
    tensorboard: Switch = True
    wandb_project: Name | None = None


class RunSection(Section):
    name: Name
    dir: PathText


class RunConfig(Section):
    run: RunSection
    model: ModelConfig
    data: DataConfig
    stage: StageConfig
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def max_tiles_per_image(self) -> int:
        """Most tiles an image becomes, the thumbnail counted."""
        tiles = self.stage.max_num_tiles
        return tiles + 1 if self.stage.use_thumbnail and tiles > 1 else tiles

    @property
    def num_tokens_per_tagged_tile(self) -> int:
        """Tokens of a tile with the longest tag that it may have."""
        tag = max_tag_tokens(self.stage, self.model.vision.image_size)
        return self.model.vision.num_tokens_per_tile + tag


def max_tag_tokens(stage: StageConfig, image_size: int) -> int:
    """Tokens of the longest tile tag with Qwen2's vocabulary, where a digit is a token.

    Known before a tokenizer is loaded, to check sequence lengths (golden values in tests/data).
    """
    tiles = stage.max_num_tiles
    match stage.tile_tags:
        case "none":
            return 0
        case "1d":  # `<tile_6>`; `<tile_global_thumbnail>` is as long
            return 4 + len(str(tiles))
        case _ if tiles == 1:  # `<tile_global_thumbnail>`
            return 5
        case "2d_grid":  # `<tile_x0_y0>`
            return 5 + 2 * len(str(tiles - 1))
        case "2d_box":  # `<box> (0, 0), (448, 448) </box>`
            corners = [
                (x * image_size, y * image_size, (x + 1) * image_size, (y + 1) * image_size)
                for x in range(tiles)
                for y in range(tiles // (x + 1))
            ]
            return 14 + max(sum(len(str(number)) for number in corner) for corner in corners)
