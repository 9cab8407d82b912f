"""The command line. Every verb is thin and imports what it needs when it runs."""

from __future__ import annotations

import resource
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from nvlm.errors import ConfigError, NvlmError
from nvlm.failures import end
from nvlm.launch import launched, planned_world_size, rank_to_speak
from nvlm.parallel.orphans import end_with_launcher
from nvlm.parallel.signals import stop_on_signals
from nvlm.places import check_file, check_folder
from nvlm.platform.known_warnings import ignore_known_warnings
from nvlm.printing import forgive_encoding, printable, say

# More than any run needs; some programs walk over all that are allowed.
_MAX_OPEN_FILES = 65536


class _Ended(Exception):
    """An error on its way to `main`: typer makes `Aborted.` of some."""

    def __init__(self, error: BaseException):
        super().__init__(error)
        self.error = error


class _Verbs(TyperGroup):
    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (EOFError, KeyboardInterrupt, OSError) as error:
            raise _Ended(error) from error


app = typer.Typer(
    cls=_Verbs,
    help="Train, convert and evaluate NVLM-D-style multimodal models on Megatron-core.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain text: help reads the same in a pipe, and brackets in messages stay brackets.
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
model_app = typer.Typer(help="Look at models.", no_args_is_help=True)
data_app = typer.Typer(help="Build, index and inspect data.", no_args_is_help=True)
convert_app = typer.Typer(help="To and from Hugging Face folders.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(model_app, name="model")
app.add_typer(data_app, name="data")
app.add_typer(convert_app, name="convert")

# Of counts; the schema's too.
_LARGEST = 2**31 - 1
# Wrong options and arguments, which typer prints in four lines.
_UsageError: Any = typer.BadParameter.__bases__[0]


def path_of_user(text: str | Path) -> Path:
    """`~` and `$NAME` put in. Typer hands over defaults, too, which are paths already."""
    from nvlm.config.paths import expand_path

    try:
        return Path(expand_path(str(text)))
    except NvlmError as error:
        raise typer.BadParameter(str(error)) from None


def _check_beside(out: Path) -> None:
    """A folder that is written beside `out` and renamed."""
    if launched().rank == 0:
        check_folder(out.parent, "OUT")


def _print_versions(wanted: bool) -> None:
    if wanted:
        from nvlm.versions import versions

        say(versions())
        raise typer.Exit()


@app.callback()
def options_of_nvlm(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_versions, is_eager=True, help="Print versions and exit."
        ),
    ] = False,
) -> None:
    pass


ConfigFile = Annotated[Path, typer.Argument(help="A run's YAML file.", metavar="CONFIG")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation
    typer.Argument(help="key=value, such as train.steps=100", metavar="KEY=VALUE"),
]


@config_app.command("show", short_help="Print the resolved configuration and its numbers.")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved configuration and the numbers that follow from it."""
    from nvlm.config.show import show

    show(config, overrides or [], planned_world_size())


@model_app.command("summary", short_help="Count parameters by part and pipeline stage.")
def model_summary(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Build the model without memory for it, and count its parameters by part and stage."""
    from nvlm.config import load_config

    checked = load_config(config, overrides or [])
    from nvlm.model.summary import print_summary

    print_summary(checked, as_json)


@app.command("train", short_help="Train a stage; run again to resume.")
def train_command(
    config: ConfigFile,
    overrides: Overrides = None,
    allow_data_change: Annotated[
        bool,
        typer.Option(
            "--allow-data-change",
            help="Resume although seed, blend, samples or template changed; says where each source "
            "goes on.",
        ),
    ] = False,
) -> None:
    """Train a stage, alone or under `torchrun -m nvlm train ...`; run again to resume."""
    launched()
    from nvlm.config import load_config

    checked = load_config(config, overrides or [])
    from nvlm.train.preflight import check_before_start

    if launched().rank == 0:
        check_before_start(checked)
    from nvlm.train.ownership import own_run_folder

    owning = own_run_folder(Path(checked.run.dir)) if launched().rank == 0 else nullcontext()
    with owning as ownership:
        from nvlm.train.trainer import train

        train(checked, allow_data_change, ownership)


Tensor = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, max=_LARGEST, help="Tensor-parallel size, under torchrun."),
]
Pipeline = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, max=_LARGEST, help="Pipeline-parallel size, under torchrun."),
]


@app.command("generate", short_help="Answer a prompt about images.")
def generate_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            parser=path_of_user, metavar="CHECKPOINT", help="A checkpoint or run folder."
        ),
    ],
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    image: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="FILE",
            help="An image file; repeat for several, in the order of their marks.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=_LARGEST, help="Most tokens to answer with.")
    ] = 64,
    tensor: Tensor = None,
    pipeline: Pipeline = None,
) -> None:
    """Answer a prompt about images with a Megatron checkpoint (greedy decoding).

    Several processes take the layout that the checkpoint was trained with, unless --tensor or
    --pipeline say another.
    """
    launched()
    from nvlm.generate.answer import answer

    text = answer(checkpoint, prompt, image or [], max_new_tokens, tensor, pipeline)
    if rank_to_speak() == 0:
        say(text)


@app.command("evaluate", short_help="Answer a split's questions and score the answers.")
def evaluate_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            parser=path_of_user, metavar="CHECKPOINT", help="A checkpoint or run folder."
        ),
    ],
    data_root: Annotated[
        Path,
        typer.Option(parser=path_of_user, metavar="DIR", help="Folder with the split's shards."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=path_of_user, metavar="FILE", help="JSON lines to write, one per sample."
        ),
    ],
    split: Annotated[str, typer.Option(help="Which split to answer.")] = "heldout",
    limit_per_task: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=_LARGEST, help="At most so many samples of each task."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=_LARGEST, help="Most tokens to answer with.")
    ] = 32,
    tensor: Tensor = None,
    pipeline: Pipeline = None,
) -> None:
    """Answer a split's questions and print the share that is right, per task.

    Under torchrun every --tensor x --pipeline processes (1 x 1 where not given) hold the model and
    answer their share.
    """
    launched()
    from nvlm.evaluate.run import evaluate_checkpoint

    evaluate_checkpoint(
        checkpoint,
        data_root,
        split,
        out,
        limit_per_task,
        max_new_tokens,
        tensor or 1,
        pipeline or 1,
    )


@app.command("demo", short_help="Train, export and evaluate a tiny NVLM-D here.")
def demo_command(
    root: Annotated[
        Path, typer.Option(parser=path_of_user, metavar="DIR", help="Where everything is written.")
    ] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option(help="Start over instead of going on.")] = False,
) -> None:
    """Train, export and evaluate a tiny NVLM-D on this machine, end to end."""
    check_folder(root, "--root")
    from nvlm.demo.run import run_demo

    run_demo(root, fresh=fresh)


@data_app.command("build-demo", short_help="Write shards of digits, photographs, charts.")
def data_build_demo(
    folder: Annotated[
        Path, typer.Argument(parser=path_of_user, metavar="DIR", help="Where the shards go.")
    ],
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Another seed draws other samples.")
    ] = 0,
) -> None:
    """Write WebDataset shards of digits, photographs, documents, charts and text."""
    check_folder(folder, "DIR")
    from nvlm.demo.build_data import build_demo_data

    build_demo_data(folder, seed=seed)


@data_app.command("import", short_help="Turn data in another format into shards.")
def data_import(
    source: Annotated[
        Path, typer.Argument(parser=path_of_user, metavar="SRC", help="The file or folder to read.")
    ],
    out: Annotated[
        Path,
        typer.Argument(parser=path_of_user, metavar="OUT", help="Shards go to OUT/SPLIT/SOURCE."),
    ],
    format: Annotated[
        str,
        typer.Option(
            help="llava-json, captions-folder, webdataset, energon, parquet or hf-datasets."
        ),
    ],
    split: Annotated[str, typer.Option(help="Which split this is.")] = "train",
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--source", help="What to call the source; like SRC where not given."),
    ] = None,
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=path_of_user, metavar="DIR", help="Folder of the image files that SRC names."
        ),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="SRC may name files outside that folder.")
    ] = False,
    from_split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Take SRC's files of this split, by their names; all: every file; none: those "
            "that name no split. Not given: those of --split."
        ),
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Largest shard, such as 500MB.")] = "1GB",
    samples_per_shard: Annotated[
        int, typer.Option(min=1, max=_LARGEST, help="Most samples in one.")
    ] = 2000,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=1024, help="Processes; one per core where not given."),
    ] = None,
) -> None:
    """Turn data in another format into shards; run again to go on after an interruption."""
    check_folder(out, "OUT")
    from nvlm.data.importers.formats import ImportOptions
    from nvlm.data.importers.report import import_with_progress, parse_size
    from nvlm.data.importers.run import default_num_workers

    options = ImportOptions(
        format,
        source,
        split,
        name,
        images,
        allow_outside,
        from_split,
        parse_size(shard_size),
        samples_per_shard,
        workers or default_num_workers(),
    )
    import_with_progress(options, out)


@data_app.command("index", short_help="Index shards: byte ranges, image sizes, lengths.")
def data_index(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG [DIR]... [KEY=VALUE]...",
            help="A run's YAML file, which names the tokenizer and the template; folders of shards "
            "to index in place of the run's sources; overrides.",
        ),
    ],
) -> None:
    """Index shards: byte ranges, image sizes, text lengths. What is indexed is not read again."""
    from nvlm.config import load_config

    overrides = [argument for argument in arguments if "=" in argument]
    config, *folders = [argument for argument in arguments if "=" not in argument] or [""]
    if not config.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"nvlm data index: {config or 'nothing'!r} is no YAML file; the first argument is a "
            "run's configuration, whose tokenizer and template the lengths are counted with: "
            f"`nvlm data index CONFIG {' '.join([config, *folders])}`"
        )
    checked = load_config(config, overrides)
    from nvlm.data.index_report import build_indexes_with_progress

    build_indexes_with_progress(checked, [path_of_user(folder) for folder in folders])


@data_app.command("order", short_help="Print the samples of each step.")
def data_order(
    config: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, max=_LARGEST, help="Steps to list.")] = 10,
) -> None:
    """Print the samples of each step's sequences, as every layout will train them."""
    from nvlm.config import load_config

    checked = load_config(config, overrides or [])
    from nvlm.data.order import iterate_order

    for step, packs in iterate_order(checked, steps):
        for number, keys in enumerate(packs):
            say(f"step {step} sequence {number}: {' '.join(map(printable, keys))}")


@data_app.command("stats", short_help="Print what the blend will really give.")
def data_stats(
    config: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=_LARGEST, help="Steps to plan; train.steps where not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print what the blend will really give: samples, tiles, tokens, passes, padding, balance."""
    from nvlm.config import load_config

    checked = load_config(config, overrides or [])
    from nvlm.data.stats import print_stats

    print_stats(checked, steps, as_json)


@data_app.command("preview", short_help="Show samples as training will see them.")
def data_preview(
    config: ConfigFile,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Samples to show.")] = 8,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="FILE",
            help="HTML file to write; the terminal where not given.",
        ),
    ] = None,
) -> None:
    """Show the first samples as training will see them: tiles, tokens, loss mask, sequences."""
    from nvlm.config import load_config

    checked = load_config(config, overrides or [])
    if out is not None:
        check_file(out, "--out")
    from nvlm.data.preview import build_preview

    preview = build_preview(checked, samples)
    if out is None:
        from nvlm.data.preview_terminal import print_preview

        print_preview(preview)
    else:
        from nvlm.data.preview_html import write_page

        say(f"written to {write_page(preview, out)}")


@convert_app.command("from-hf", short_help="Make a checkpoint from Hugging Face folders.")
def convert_from_hf_command(
    out: Annotated[
        Path,
        typer.Argument(parser=path_of_user, metavar="OUT", help="The checkpoint folder to write."),
    ],
    config: Annotated[Path, typer.Option(metavar="FILE", help="A run's YAML file.")],
    vision: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="DIR",
            help="Hugging Face folder of an InternViT; goes with --language.",
        ),
    ] = None,
    language: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="DIR",
            help="Hugging Face folder of a Qwen2; goes with --vision.",
        ),
    ] = None,
    nvlm: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="DIR",
            help="Folder of an NVLM-D as released, or an export; instead of the two.",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Make a checkpoint from a pretrained InternViT and a pretrained Qwen2, or from an NVLM-D."""
    launched()
    from nvlm.config import load_config
    from nvlm.errors import ConvertError

    checked = load_config(config, overrides or [])
    _check_beside(out)
    from nvlm.convert import convert_from_hf, convert_from_nvlm

    if nvlm is not None and vision is None and language is None:
        convert_from_nvlm(nvlm, checked, out)
    elif nvlm is None and vision is not None and language is not None:
        convert_from_hf(vision, language, checked, out)
    else:
        raise ConvertError("give either --vision and --language, or --nvlm")


@convert_app.command("to-hf", short_help="Write a checkpoint as a Hugging Face folder.")
def convert_to_hf_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            parser=path_of_user, metavar="CHECKPOINT", help="A checkpoint or run folder."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(parser=path_of_user, metavar="OUT", help="The folder to write.")
    ],
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="bf16 or fp32; the checkpoint's own where not given."),
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Largest safetensors file.")] = "5GB",
) -> None:
    """Write a checkpoint as a Hugging Face folder that transformers opens."""
    launched()
    _check_beside(out)
    from nvlm.convert.to_hf import convert_to_hf

    convert_to_hf(checkpoint, out, dtype, shard_size)


@convert_app.command("verify", short_help="Compare two models bit by bit.")
def convert_verify_command(
    a: Annotated[
        Path,
        typer.Argument(
            parser=path_of_user, metavar="A", help="Hugging Face, checkpoint or run folder."
        ),
    ],
    b: Annotated[
        Path, typer.Argument(parser=path_of_user, metavar="B", help="Another one, of either kind.")
    ],
) -> None:
    """Compare two models bit by bit; exit code 0: equal, 1: different, 2: not comparable."""
    launched()
    from nvlm.convert.verify import print_report, verify

    report = verify(a, b)
    if rank_to_speak() == 0:
        print_report(report)
    if not report.is_equal:
        raise typer.Exit(1)


def run_app() -> int:
    """The verb that the command line names; what is wrong with its arguments in one line.

    Returns:
        the exit code.
    """
    try:
        return app(prog_name="nvlm", standalone_mode=False) or 0
    except _UsageError as error:
        message = error.format_message().replace(": Input should", ": should")
        if "\n" in message:  # nothing was given, and this is the help text
            say(message, sys.stderr)
            return 2
        verb = error.ctx.command_path if error.ctx else "nvlm"
        hint = "" if "Did you mean" in message else f"; see `{verb} --help`"
        raise ConfigError(f"{verb}: {message[0].lower()}{message[1:].rstrip('.')}{hint}") from None


def _allow_more_files() -> None:
    """As many open files as the system lets this user have: 1,024 are soon used up by processes
    that exchange tensors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> None:
    """Entry point: what ends a verb becomes a line on stderr and an exit code (failures.py)."""
    ignore_known_warnings()
    forgive_encoding()
    _allow_more_files()
    stop_on_signals()
    end_with_launcher()
    try:
        try:
            code = run_app()
        finally:
            sys.stdout.flush()
    except SystemExit:
        raise
    except _Ended as ended:
        code = end(ended.error)
    except BaseException as error:
        code = end(error)
    sys.exit(code)
