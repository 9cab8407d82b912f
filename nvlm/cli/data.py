"""`nvlm data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from nvlm.cli.app import data_app
from nvlm.cli.arguments import LARGEST, ConfigFile, Overrides, StageName, path_of_user, runs_to_show
from nvlm.errors import ConfigError
from nvlm.files import parse_size
from nvlm.places import check_file, check_folder
from nvlm.printing import printable, say

SourceToImport = Annotated[
    Path,
    typer.Argument(
        parser=path_of_user,
        metavar="SRC",
        help="The file or folder to read; of parquet and webdataset also a data set's hub id "
        "(OWNER/NAME@REVISION).",
    ),
]
FromSplit = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Take SRC's files of this split, by their names; all: every file; none: those "
        "that name no split. Not given: those of --split."
    ),
]


@data_app.command("import", short_help="Turn data in another format into shards.")
def import_command(
    source: SourceToImport,
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
    from_split: FromSplit = None,
    shard_size: Annotated[str, typer.Option(help="Largest shard, such as 500MB.")] = "1GB",
    samples_per_shard: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Most samples in one.")
    ] = 2000,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=1024, help="Processes; one per core where not given."),
    ] = None,
) -> None:
    """Turn data in another format into shards; run again to continue after an interruption."""
    check_folder(out, "OUT")
    from nvlm.hub import Folder, folder_of
    from nvlm.importers.formats import FILES_OF_HUB, ImportOptions
    from nvlm.importers.report import import_with_progress
    from nvlm.importers.run import default_num_workers

    found = Folder(source)
    if format in FILES_OF_HUB:
        found = folder_of(source, "SRC", "dataset", FILES_OF_HUB[format])
    options = ImportOptions(
        format,
        found.path,
        split,
        name or found.name,
        images,
        allow_outside,
        from_split,
        parse_size(shard_size, "--shard-size"),
        samples_per_shard,
        workers or default_num_workers(),
        found.description,
    )
    import_with_progress(options, out)


@data_app.command("levels", short_help="Say how well image and text of each sample agree.")
def data_levels(
    source: Annotated[
        Path,
        typer.Argument(parser=path_of_user, metavar="SRC", help="A source's folder of shards."),
    ],
    out: Annotated[
        Path, typer.Argument(parser=path_of_user, metavar="OUT", help="The new folder of shards.")
    ],
    clip: Annotated[
        Path,
        typer.Option(
            parser=path_of_user,
            metavar="FOLDER",
            help="A CLIP that transformers opens: a folder, or a hub id (OWNER/NAME@REVISION).",
        ),
    ],
    levels: Annotated[int, typer.Option(min=2, max=LARGEST, help="How many levels.")] = 8,
) -> None:
    """Copy a source with levels of alignment, by CLIP's scores in equal numbers."""
    from nvlm.hub import folder_of
    from nvlm.importers.alignment_levels import write_levels

    folder = folder_of(clip, "--clip", "model").path
    written = write_levels(source, out, folder, levels)
    for number, members in enumerate(written.levels):
        scores = [one.score for one in members]
        span = f"{min(scores):.3f} to {max(scores):.3f}"
        say(f"level {number}: {len(members):,} samples, cosines {span}")
    say(f"without a level: {written.num_others:,} samples")
    say(f"written to {out}")


@data_app.command("index", short_help="Index shards: byte ranges, image sizes, lengths.")
def data_index(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG [DIR]... [KEY=VALUE]...",
            help="A run's YAML file or name, which says the tokenizer and the template; folders of "
            "shards to index in place of the run's sources; overrides.",
        ),
    ],
    stage: StageName = None,
) -> None:
    """Index shards: byte ranges, image sizes, text lengths. What is indexed is not read again.

    Of a file with stages for all of them in turn, or for the one that --stage names.
    """
    from nvlm.config.shipped import run_names

    overrides = [argument for argument in arguments if "=" in argument]
    config, *folders = [argument for argument in arguments if "=" not in argument] or [""]
    if not config.endswith((".yaml", ".yml")) and config not in run_names():
        raise ConfigError(
            f"nvlm data index: {config or 'nothing'!r} is not a YAML file; the first argument is a "
            "run's configuration, whose tokenizer and template the lengths are counted with: "
            f"`nvlm data index CONFIG {' '.join([config, *folders])}`"
        )
    for run in runs_to_show(Path(config), overrides, stage, as_json=False):
        from nvlm.views.index_report import build_indexes_with_progress

        build_indexes_with_progress(run, [path_of_user(folder) for folder in folders])


@data_app.command("order", short_help="Print the samples of each step.")
def data_order(
    config: ConfigFile,
    overrides: Overrides = None,
    stage: StageName = None,
    steps: Annotated[int, typer.Option(min=1, max=LARGEST, help="Steps to list.")] = 10,
) -> None:
    """Print the samples of each step's sequences, as every layout will train them."""
    from nvlm.config import load_config

    checked = load_config(config, overrides or [], stage=stage)
    from nvlm.data.order.planner import iterate_order

    for step, packs in iterate_order(checked, steps):
        for number, keys in enumerate(packs):
            say(f"step {step} sequence {number}: {' '.join(map(printable, keys))}")


@data_app.command("stats", short_help="Print what the blend will really give.")
def data_stats(
    config: ConfigFile,
    overrides: Overrides = None,
    stage: StageName = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=LARGEST, help="Steps to plan; train.steps where not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print what the blend will really give: samples, tiles, tokens, passes, padding, balance."""
    for run in runs_to_show(config, overrides or [], stage, as_json):
        from nvlm.views.stats import print_stats

        print_stats(run, steps, as_json)


@data_app.command("preview", short_help="Show samples as training will see them.")
def data_preview(
    config: ConfigFile,
    overrides: Overrides = None,
    stage: StageName = None,
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

    checked = load_config(config, overrides or [], stage=stage)
    if out is not None:
        check_file(out, "--out")
    from nvlm.views.preview import build_preview

    preview = build_preview(checked, samples)
    if out is None:
        from nvlm.views.preview_terminal import print_preview

        print_preview(preview)
    else:
        from nvlm.views.preview_page import write_preview

        say(f"written to {write_preview(preview, out)}")
