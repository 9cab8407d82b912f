"""What a run can say. Every section refuses unknown keys; whatever can be derived is a property.

The docstrings below the keys are what docs/configuration.md and editors (configs/schema.json) say
about them: `scripts/config_docs` writes both.

Sizes follow Megatron-core's names (`ffn_hidden_size`, `num_query_groups`, ...). Lengths are counted
in tokens, image sizes in pixels.
"""

from __future__ import annotations

from math import lcm
from typing import Any, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from nvlm.config.adapters import AdapterConfig
from nvlm.config.alignment import AlignmentConfig
from nvlm.config.connectors import Connector, ConnectorSizes
from nvlm.config.cross_attention import CrossAttentionConfig
from nvlm.config.data_section import (
    DataConfig as DataConfig,
)
from nvlm.config.data_section import (
    SourceConfig as SourceConfig,
)
from nvlm.config.encoders import Encoder
from nvlm.config.language import LanguageConfig as LanguageConfig
from nvlm.config.run_sections import (
    CheckpointConfig as CheckpointConfig,
)
from nvlm.config.run_sections import (
    LogConfig as LogConfig,
)
from nvlm.config.run_sections import (
    ModuleRecomputeConfig as ModuleRecomputeConfig,
)
from nvlm.config.run_sections import (
    OptimizerConfig as OptimizerConfig,
)
from nvlm.config.run_sections import (
    RecomputeConfig as RecomputeConfig,
)
from nvlm.config.run_sections import (
    RunSection as RunSection,
)
from nvlm.config.run_sections import (
    ScheduleConfig as ScheduleConfig,
)
from nvlm.config.run_sections import (
    TrainConfig as TrainConfig,
)
from nvlm.config.run_sections import (
    ValidationConfig as ValidationConfig,
)
from nvlm.config.section import Section
from nvlm.config.tiles import TileTags, Tiling, max_tag_tokens, with_thumbnail
from nvlm.config.values import (
    Count,
    DeepStack,
    Name,
    NumTiles,
    PathText,
    StageLayers,
    Switch,
    Text,
)

Fusion = Literal["decoder_only", "cross_attention", "hybrid"]


class ModelConfig(Section):
    """The architecture. Its numbers are in configs/model."""

    name: Name
    """What the model is called."""
    vision: Encoder
    connector: Connector
    language: LanguageConfig
    fusion: Fusion = "decoder_only"
    """How the decoder reads images (paper section 4.1). `decoder_only`: as tokens among its own,
    NVLM-D. `cross_attention`: by layers of gated cross-attention, NVLM-X. `hybrid`: the thumbnail
    as tokens, the other tiles by cross-attention, NVLM-H."""
    cross_attention: CrossAttentionConfig | None = None
    """Of `cross_attention` and `hybrid`. null: none, as `decoder_only` needs."""
    visual_attention: Literal["causal", "bidirectional"] = "causal"
    """How the decoder's image tokens see each other. `bidirectional`: those with no other token
    between them (a tile's; with `stage.tile_tags: none` an image's) both ways, text causally
    (Croc)."""
    deepstack: DeepStack = "none"
    """What is added to the image tokens' hidden states behind the decoder's first layers
    (DeepStack). `levels`: as in Qwen3-VL, all but the last of `vision.feature_layers`, each through
    a connector of its own, one behind each layer; the other connector reads the last alone.
    `tiles`: the sequence has an image's thumbnail alone, and every tile's tokens are added to it, a
    part of each behind each layer. docs/switches.md."""
    tokenizer: PathText
    """A folder with a Hugging Face tokenizer, or a hub name. Its chat template says how
    conversations are written."""
    image_token: Name = "<|vision_pad|>"
    """The special token whose positions image embeddings overwrite: one that the tokenizer has and
    that stands nowhere else, such as Llama 3's `<|reserved_special_token_0|>`."""
    layer_implementation: Literal["auto", "local", "transformer_engine"] = "auto"
    """`auto`: Transformer Engine on a GPU where it is installed, in bf16; else `local`."""

    @model_validator(mode="before")
    @classmethod
    def _read_old_name(cls, values: Any) -> Any:
        """Configurations saved in checkpoints and exports before connectors had kinds."""
        if not isinstance(values, dict) or "projector" not in values:
            return values
        if "connector" in values:
            raise PydanticCustomError(
                "wrong_value", "projector is the earlier name of connector: give one of the two"
            )
        new_name = {"projector": "connector"}
        return {new_name.get(key, key): value for key, value in values.items()}

    @property
    def connector_sizes(self) -> ConnectorSizes:
        channels = self.vision.feature_size // self.num_connectors
        return ConnectorSizes(self.vision.num_patches, channels, self.language.hidden_size)

    @property
    def num_connectors(self) -> int:
        """As many as encoder layers that go through one of their own; else 1."""
        first, *others = self.vision.parts.values()
        fits = (self.deepstack == "levels" or self.reads_levels_in_turn) and not others
        return max(1, len(first.feature_layer_numbers)) if fits else 1

    @property
    def stacks_tiles(self) -> bool:
        return self.deepstack == "tiles"

    @property
    def holds_thumbnails(self) -> bool:
        """Whether the sequence has of an image the thumbnail, or the only tile, and no other."""
        return self.fusion == "hybrid" or self.stacks_tiles

    @property
    def reads_levels_in_turn(self) -> bool:
        return self.cross_attention is not None and self.cross_attention.levels == "in_turn"

    @property
    def num_levels_beside(self) -> int:
        """Rows that the decoder reads by cross-attention, each layer one of them."""
        return self.num_connectors if self.reads_levels_in_turn else 1

    @property
    def cross_attention_layers(self) -> tuple[int, ...]:
        """Numbers, from 0, of the decoder's layers with cross-attention: the last of each group."""
        settings = self.cross_attention
        return () if settings is None else settings.layers(self.language.num_layers)

    @property
    def num_cross_attention_groups(self) -> int:
        """Key and value heads of those layers."""
        wanted = None if self.cross_attention is None else self.cross_attention.num_query_groups
        return wanted or self.language.num_query_groups

    @property
    def sees_both_ways(self) -> bool:
        return self.visual_attention == "bidirectional"

    @property
    def num_tokens_per_tile(self) -> int:
        """Tokens that a tile becomes."""
        return self.connector.num_tokens(self.connector_sizes)


class StageConfig(Section):
    """One training stage: what trains, and how images and text become a sequence."""

    name: Name
    """What the stage is called."""
    freeze: list[Name] = []
    """fnmatch patterns over parameter names, such as `vision_model.*`. No match is an error. What
    a later one with `!` before it matches trains after all: `'!*cross_att*'`."""
    adapters: dict[Name, AdapterConfig] = {}
    """fnmatch pattern over matrices of linear layers -> an adapter beside each (LoRA, DoRA). A part
    of the model (`language_model`, ...) with adapters trains nothing else but what a `!` pattern of
    `freeze` names."""
    sequence_length: Count
    """Length of a sequence, in tokens; shorter ones are padded."""
    max_num_tiles: NumTiles = 6
    """Most tiles cut from an image, the thumbnail not counted. 1: the image is squashed to a
    tile."""
    use_thumbnail: Switch = True
    """An image of several tiles gets one more, of the whole image."""
    tiling: Tiling = "stretch"
    """How an image becomes tiles. `stretch`: resized to the grid closest to its aspect ratio, as
    NVLM. `pad`: its aspect ratio kept, in the largest square grid of at most `max_num_tiles`, the
    rest padding. `pad_skip`: tiles of padding alone left out (SPHINX-X). docs/data.md."""
    tile_tags: TileTags = "1d"
    """The paper's designs (section 4.2): 1-D `<tile_1>`, 2-D grid `<tile_x0_y0>`, 2-D bounding
    box. `soft`: vectors that are learned, beside the projector (Tag-LLM). docs/switches.md."""
    num_soft_tag_tokens: Count = 1
    """Of `tile_tags: soft`: vectors of each tag."""
    alignment: AlignmentConfig | None = None
    """A learned vector at the beginning of a document with images (AlignGPT). null: none."""
    image_boundary: Literal["block", "merged", "separate"] = "block"
    """How text around an image is tokenised. `block`: the image on a line of its own, its block
    `<Image>...</Image>`, the newline and the text after it each by themselves, as vLLM does from
    0.29 on; `merged`: all that stands between placeholders as one text, as vLLM did before;
    `separate`: like `merged`, but `<Image>` and the first tile tag one by one, as NVIDIA's Megatron
    code did. docs/serving.md."""
    system_message: Text | None = "Answer the questions."
    """System message of conversations that bring none of their own. null: no system turn."""
    packing: Switch = True
    """Several samples per sequence, with document masks and restarted positions."""
    max_tiles_per_sequence: Count | None = None
    """Tile budget of a sequence. null: as many as fit in its length."""

    @property
    def has_soft_tags(self) -> bool:
        return self.tile_tags == "soft"

    @property
    def num_levels_of_samples(self) -> int | None:
        """Levels of alignment, of which each sample that begins with an image brings one."""
        alignment = self.alignment
        return None if alignment is None or self.mixes_levels else alignment.num_levels

    @property
    def mixes_levels(self) -> bool:
        return self.alignment is not None and self.alignment.levels_from == "gate"


class ParallelConfig(Section):
    """Process layout. The data-parallel size is what the world size leaves."""

    tensor: Count = 1
    """Tensor-parallel size: processes that share each layer."""
    pipeline: Count = 1
    """Pipeline-parallel size: stages that the decoder's layers are split into."""
    virtual_pipeline: Count = 1
    """Parts of the decoder that each pipeline stage holds, interleaved (virtual pipeline
    stages)."""
    layout: StageLayers = "even"
    """Decoder layers of each pipeline stage: as many on all (`even`), as many as make the stages
    take about the same time (`auto`), or a number for each, and with virtual stages a list for
    each with a number per chunk. docs/parallel.md."""
    expert: Count = 1
    """Expert-parallel size: processes of a pipeline stage, of one tensor-parallel group or of
    several, that share the experts of each layer. Each expert is whole on its process, whatever
    `tensor` is (`model.language.moe`)."""
    sequence: Switch = False
    """Megatron's sequence parallelism (activations split over the tensor-parallel group)."""
    context: Count = 1
    """Context-parallel size: processes that share the tokens of each row. docs/parallel.md."""
    vision: Literal["tensor", "tile_parallel"] = "tensor"
    """Where tiles are encoded. `tensor`: on the first stage, whose processes share each layer.
    `tile_parallel`: on all `tensor` x `pipeline` processes, each with the whole, frozen vision
    model and an equal part of the step's tiles."""

    @property
    def model_parallel_size(self) -> int:
        """Processes that hold one copy of the model."""
        return self.tensor * self.context * self.pipeline

    @property
    def fewest_processes(self) -> int:
        """That the layout takes: of each pipeline stage as many as share its experts."""
        return self.pipeline * lcm(self.tensor * self.context, self.expert)

    @property
    def shares_tiles(self) -> bool:
        return self.vision == "tile_parallel"


class RunConfig(Section):
    run: RunSection
    model: ModelConfig
    data: DataConfig
    stage: StageConfig
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    log: LogConfig = LogConfig()

    @property
    def max_tiles_per_image(self) -> int:
        """Most tiles an image becomes, the thumbnail counted."""
        tiles = self.stage.max_num_tiles
        return with_thumbnail(tiles, self.stage.use_thumbnail)

    @property
    def num_tag_tokens(self) -> int:
        """Tokens of the longest tag that a tile may have."""
        stage, image_size = self.stage, self.model.vision.image_size
        if stage.has_soft_tags:
            return stage.num_soft_tag_tokens
        return max_tag_tokens(stage.tile_tags, stage.max_num_tiles, image_size)

    @property
    def num_tokens_per_tagged_tile(self) -> int:
        """Tokens of a tile with the longest tag that it may have, wherever the decoder reads it."""
        return self.model.num_tokens_per_tile + self.num_tag_tokens

    @property
    def max_tokens_per_image(self) -> int:
        """Of an image in the decoder's sequence, tags counted, `<Image>` and `</Image>` not."""
        if self.model.holds_thumbnails:
            return self.num_tokens_per_tagged_tile
        if self.model.fusion == "cross_attention":
            return self.max_tiles_per_image * self.num_tag_tokens
        return self.max_tiles_per_image * self.num_tokens_per_tagged_tile

    @property
    def num_added_rows(self) -> int:
        """Decoder layers, the first ones, behind which something is added to image tokens."""
        if self.model.stacks_tiles:
            return self.stage.max_num_tiles if self.stage.max_num_tiles > 1 else 0
        return (self.model.num_connectors - 1) * (self.model.deepstack == "levels")

    @property
    def max_tokens_per_image_beside(self) -> int:
        """Of an image that the decoder reads beside its sequence, tags counted."""
        match self.model.fusion:
            case "decoder_only":
                return 0
            case "cross_attention":
                return self.max_tiles_per_image * self.model.num_tokens_per_tile
            case "hybrid":
                return (self.max_tiles_per_image - 1) * self.num_tokens_per_tagged_tile
