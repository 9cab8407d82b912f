"""The sections of a configuration that say how a run goes: optimizer, checkpoints, log."""

from __future__ import annotations

from typing import Literal

from nvlm.config.distillation import DistillConfig
from nvlm.config.section import Section
from nvlm.config.values import (
    Count,
    CountOrZero,
    Decay,
    FolderName,
    Interval,
    Name,
    PathText,
    Positive,
    PositiveOrZero,
    Seed,
    Switch,
)


class OptimizerConfig(Section):
    """AdamW with decoupled weight decay."""

    lr: Positive
    """Highest learning rate."""
    min_lr: PositiveOrZero = 0.0
    """Learning rate at the end of the cosine."""
    beta1: Decay = 0.9
    """Decay of the gradient's running mean."""
    beta2: Decay = 0.95
    """Decay of the squared gradient's running mean."""
    epsilon: Positive = 1e-8
    """Added to the denominator of the update."""
    weight_decay: PositiveOrZero = 0.1
    """Weight decay of matrices; vectors have none."""
    clip_grad: Positive = 10.0
    """Largest norm of all gradients together; longer ones are scaled down to it."""
    lr_multipliers: dict[Name, Positive] = {}
    """fnmatch pattern over parameter names -> factor on the learning rate. No match is an error."""
    weight_decay_multipliers: dict[Name, PositiveOrZero] = {}
    """The same for weight decay; 0 turns it off. Norms, biases and other vectors have none
    anyway."""


class ScheduleConfig(Section):
    """Linear warm-up from 0 to `lr`, then cosine to `min_lr`."""

    warmup_steps: CountOrZero = 0
    """Steps of the warm-up."""
    decay_steps: Count | None = None
    """Step at which the cosine reaches `min_lr`. null: `train.steps`."""


class ModuleRecomputeConfig(Section):
    """What of one module's activations is computed again in the backward pass instead of kept."""

    granularity: Literal["none", "selective", "full"] = "none"
    """`selective`: norms, SwiGLU's product, and the core attention of `local` layers, which cost
    little; `full`: whole layers."""
    num_layers: Count | None = None
    """With `full`: layers of each pipeline stage that are recomputed. null: all."""


class RecomputeConfig(Section):
    """Activation recomputation. A frozen vision encoder keeps no activations to begin with."""

    vision: ModuleRecomputeConfig = ModuleRecomputeConfig()
    language: ModuleRecomputeConfig = ModuleRecomputeConfig()


class SpikeConfig(Section):
    """When a step's loss or gradient norm is a spike: greater than the median of the last steps by
    more than so many robust standard deviations (nvlm/train/spikes.py has the formula)."""

    window: Count = 100
    """Steps looked back on; nothing is judged before a quarter of them, and 8, were taken."""
    deviations: Positive = 10.0
    """Standard deviations, of at least 5 % of the median each, between the median and a spike."""


class Fp8Config(Section):
    """Products of the decoder's layers in 8 bits, by Transformer Engine; keys and values are
    Megatron-core's. All else, the encoder, the projector and the output layer too, is in 16."""

    recipe: Literal["none", "delayed", "tensorwise", "blockwise"] = "none"
    """How numbers are scaled: by the maxima of passes before, by a tensor's own, or by those of its
    blocks. Needs `transformer_engine` layers and a GPU of sm89 or later, sm90 for `blockwise`."""
    format: Literal["hybrid", "e4m3"] = "hybrid"
    """`hybrid`: gradients with two more bits of exponent."""
    margin: CountOrZero = 0
    """With `delayed`: factors are so many powers of two smaller than the maxima allow."""
    amax_history_len: Count = 1
    """With `delayed`: passes whose maxima count."""
    amax_compute_algo: Literal["most_recent", "max"] = "most_recent"
    """With `delayed`: which of these maxima counts."""


class TrainConfig(Section):
    """How long, how much at a time, and with which optimizer."""

    steps: Count
    """Optimizer steps of the run."""
    global_batch_size: Count
    """Sequences per step (packs where the stage packs)."""
    micro_batch_size: Count = 1
    """Sequences that a model replica takes at a time."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of activations and of the weights that they are computed with."""
    loss_weighting: Literal["token", "sample", "sqrt_length"] = "token"
    """What counts equally in the loss: every trained token, every sample, or every sample by the
    square root of its trained tokens."""
    seed: Seed = 1234
    """Of random first weights, of prompts and of the order of samples."""
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    recompute: RecomputeConfig = RecomputeConfig()
    hidden_dropout: Decay = 0.0
    """Share of the numbers that are zeroed of what enters the decoder, and of what each of its
    attentions and MLPs adds. docs/training.md."""
    attention_dropout: Decay = 0.0
    """Share of the decoder's attention weights that are zeroed."""
    fp8: Fp8Config = Fp8Config()
    distill: DistillConfig | None = None
    """A teacher to learn from. null: none."""
    on_spike: Literal["warn", "skip", "stop"] = "warn"
    """About a step whose loss or gradient norm jumps: say so; leave out its update, as if its
    samples had not been drawn; or end the run before the update."""
    spike: SpikeConfig = SpikeConfig()

    @property
    def has_dropout(self) -> bool:
        return bool(self.hidden_dropout or self.attention_dropout)


class CheckpointConfig(Section):
    """What to start from, and what to keep."""

    load: PathText | None = None
    """Weights to start from: a checkpoint folder, a run folder, or `random`. Ignored on resume."""
    every: Interval = 1000
    """Steps between checkpoints, or the time, such as `30min` or `2h`; one is always written at the
    end."""
    background: Switch = True
    """Copy the state to the host and write it while training goes on; else training waits."""
    keep: Count | None = None
    """Newest checkpoints kept; null: all. Not removed are also those of `keep_every`, the best one,
    and those from the end of a run."""
    keep_every: Count | None = None
    """Steps between checkpoints that are kept for good. null: none."""
    best: Name | None = None
    """A number of the validation, such as `validation/loss`: the checkpoint with the best one is
    written, kept, and linked as `best`. null: none."""
    best_is: Literal["lower", "higher"] | None = None
    """Which value of `best` is better; to be said with it."""


class ValidationConfig(Section):
    """Held-out samples whose loss is measured during training, which they do not change."""

    every: Count | None = None
    """Steps between measurements; one is also made at the end. null: none."""
    split: FolderName = "heldout"
    """Folder below `data.root`, another than `data.split`."""
    sources: list[Name] | None = None
    """Those that are measured. null: all that the folder has."""
    samples: Count | None = None
    """Most samples of each source, always the same ones. null: all."""
    questions: CountOrZero = 0
    """Questions of each task that the model is asked, always the same ones, as `nvlm evaluate` asks
    them; answers go to `generations.jsonl`."""
    max_new_tokens: Count = 32
    """Longest answer to these, in tokens."""
    benchmarks: list[Name] | None = None
    """Published benchmarks that the model is asked and scored by, names of `nvlm evaluate
    benchmarks`; the number of each is `benchmark/NAME`. null: none."""
    benchmarks_dir: PathText | None = None
    """Has a folder of files for each, as for `nvlm evaluate --data`."""
    benchmark_questions: Count | None = None
    """Most questions of each, those of `nvlm evaluate --limit`. null: all."""


class LogConfig(Section):
    """What a run says about its training."""

    every: Count = 1
    """Steps between lines on the terminal; `metrics.jsonl` has every step."""
    slow_rank_steps: Count = 50
    """Steps over which data ranks are compared."""
    slow_rank_factor: Positive = 1.3
    """A data rank is named whose own work takes more than so many times the others' median."""
    tensorboard: Switch = True
    """Curves for TensorBoard, in the run's folder."""
    wandb_project: Name | None = None
    """Project of Weights & Biases. null: none."""
    mlflow_experiment: Name | None = None
    """Experiment of MLflow. null: none."""
    mlflow_uri: Name | None = None
    """Address of MLflow's server, or a file such as `sqlite:///mlflow.db`. null: the environment's
    MLFLOW_TRACKING_URI."""


class RunSection(Section):
    """The run's name and place."""

    name: Name
    """What the run is called."""
    dir: PathText
    """Folder of its checkpoints, index and logs."""
    hang_minutes: Positive | None = 10.0
    """The run ends when it has not moved for so long; a process's first step and validation may
    take 3 times as long, a checkpoint 12 times. null: it waits."""
    max_minutes: Positive | None = None
    """Wall-clock time from the start of the process after which the run has saved and ended, the
    time that a save takes subtracted. The same command goes on. null: no limit."""
