"""`nvlm evaluate`, and `compare`, `rescore` and `benchmarks` behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from nvlm.cli.app import VerbOrArguments, app
from nvlm.cli.arguments import (
    LARGEST,
    KeepCache,
    KeepVisualTokens,
    ModelToAsk,
    Pipeline,
    Tensor,
    path_of_user,
)
from nvlm.errors import ConfigError
from nvlm.launch import launched
from nvlm.printing import say

if TYPE_CHECKING:
    from nvlm.generate.thrift import Thrift

other_verbs = typer.Typer(add_completion=False, rich_markup_mode=None)

_Suite = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="NAMES",
        help="Published benchmarks, with commas between them (`nvlm evaluate benchmarks` lists "
        "them); nvlm: those of the paper's table 7.",
    ),
]
_Data = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        parser=path_of_user, metavar="DIR", help="With --suite: has a folder of files for each."
    ),
]
_DataToList = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        parser=path_of_user,
        metavar="DIR",
        help="Has a folder of files for each: say which are there.",
    ),
]
_Splits = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        metavar="SPLIT",
        help="Which split to answer, heldout where not given. With --suite NAME=SPLIT, for each "
        "benchmark that is not asked for its first one.",
    ),
]
_DataRoot = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(parser=path_of_user, metavar="DIR", help="Folder with the split's shards."),
]
_Out = Annotated[
    Path,
    typer.Option(
        parser=path_of_user,
        metavar="FILE",
        help="JSON lines to write, one per sample; with --suite the folder for answers and scores.",
    ),
]
_LimitPerTask = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, max=LARGEST, help="At most so many samples of each task."),
]
_Limit = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1, max=LARGEST, help="With --suite: at most so many questions of each benchmark."
    ),
]
_Shots = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(metavar="0|4|8", help="With --suite: examples before each question."),
]
_ShotsTextOnly = Annotated[
    bool, typer.Option("--shots-text-only", help="Leave the examples' images out, as a control.")
]
_ShotsSeed = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, max=LARGEST, help="Which examples are drawn; 0 where not given."),
]
_ChainOfThought = Annotated[
    bool,
    typer.Option(
        "--chain-of-thought",
        help="With --suite: ask for reasoning first, and score what follows `Answer:`.",
    ),
]
_MaxNewTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1,
        max=LARGEST,
        help="Most tokens to answer with; 32, or what the benchmark says, where not given.",
    ),
]
_MaxNumTiles = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1,
        max=LARGEST,
        help="With --suite: most tiles of an image; as in training where not given.",
    ),
]
_SkipMissing = Annotated[
    bool,
    typer.Option(
        "--skip-missing", help="With --suite: leave out benchmarks whose files are not there."
    ),
]
# With one of them --suite is meant.
_OF_SUITES = (
    "data", "limit", "shots", "shots_text_only", "shots_seed", "chain_of_thought", "max_num_tiles",
    "skip_missing",
)  # fmt: skip


class _Evaluate(VerbOrArguments):
    verbs = other_verbs


@app.command(
    "evaluate", cls=_Evaluate, short_help="Answer questions of a split or of benchmarks, and score."
)
def evaluate_command(
    ctx: typer.Context,
    checkpoint: ModelToAsk,
    out: _Out,
    data_root: _DataRoot = None,
    suite: _Suite = None,
    data: _Data = None,
    split: _Splits = None,
    limit_per_task: _LimitPerTask = None,
    limit: _Limit = None,
    shots: _Shots = None,
    shots_text_only: _ShotsTextOnly = False,
    shots_seed: _ShotsSeed = None,
    chain_of_thought: _ChainOfThought = False,
    max_new_tokens: _MaxNewTokens = None,
    max_num_tiles: _MaxNumTiles = None,
    skip_missing: _SkipMissing = False,
    keep_visual_tokens: KeepVisualTokens = 1.0,
    keep_cache: KeepCache = 1.0,
    tensor: Tensor = None,
    pipeline: Pipeline = None,
) -> None:
    """Answer a split's questions, or those of published benchmarks, and print scores.

    Under torchrun every --tensor x --pipeline processes hold the model and answer their share;
    where neither is given, each holds all of it, or as many as it takes to fit their devices.

    `nvlm evaluate benchmarks` lists what --suite knows, `nvlm evaluate compare A B` compares two
    folders that --suite has written, `nvlm evaluate rescore FOLDER` scores one again; each has its
    own --help.
    """
    launched()
    from nvlm.generate.thrift import Thrift

    thrift = Thrift(keep_visual_tokens, keep_cache)
    if suite is None:
        _evaluate_split(ctx, checkpoint, out, thrift)
        return
    if data_root is not None or limit_per_task is not None:
        name = "--data-root" if data_root else "--limit-per-task"
        raise ConfigError(f"{name} is for a split of shards; --suite has --data and --limit")
    if data is None:
        raise ConfigError("--suite needs --data DIR, which has a folder of files per benchmark")
    _evaluate_suite(ctx, checkpoint, suite, data, out, thrift)


def _evaluate_split(ctx: typer.Context, checkpoint: Path, out: Path, thrift: Thrift) -> None:
    given = ctx.params
    if others := [
        name for name in _OF_SUITES if given[name] is not None and given[name] is not False
    ]:
        raise ConfigError(f"--{others[0].replace('_', '-')} goes with --suite")
    if given["data_root"] is None:
        raise ConfigError("give --data-root DIR for a split's shards, or --suite and --data")
    split = given["split"]
    if split and len(split) > 1:
        raise ConfigError(f"--split {split[1]}: is given twice; without --suite there is one")
    from nvlm.evaluate.run import MAX_NEW_TOKENS, evaluate_checkpoint

    evaluate_checkpoint(
        checkpoint,
        given["data_root"],
        split[0] if split else "heldout",
        out,
        given["limit_per_task"],
        given["max_new_tokens"] or MAX_NEW_TOKENS,
        given["tensor"],
        given["pipeline"],
        thrift,
    )


def _evaluate_suite(
    ctx: typer.Context, checkpoint: Path, suite: str, data: Path, out: Path, thrift: Thrift
) -> None:
    given = ctx.params
    if given["shots"] not in (None, 0, 4, 8):
        raise ConfigError(f"--shots {given['shots']}: expected 0, 4 or 8")
    from nvlm.evaluate.suite.settings import Settings, choose

    settings = Settings(
        limit=given["limit"],
        shots=given["shots"] or 0,
        shots_text_only=given["shots_text_only"],
        shots_seed=given["shots_seed"] or 0,
        chain_of_thought=given["chain_of_thought"],
        max_new_tokens=given["max_new_tokens"],
        max_num_tiles=given["max_num_tiles"],
    )
    asked = choose(suite, given["split"] or [], settings)
    from nvlm.evaluate.suite.run import evaluate_suite
    from nvlm.views.suite_page import write_suite_page

    evaluate_suite(
        checkpoint,
        asked,
        data,
        out,
        given["tensor"],
        given["pipeline"],
        given["skip_missing"],
        write_suite_page,
        thrift,
    )


@other_verbs.command("benchmarks", short_help="List the benchmarks that --suite knows.")
def benchmarks_command(data: _DataToList = None) -> None:
    """List the benchmarks that --suite knows: metric, splits, files, and where these come from.

    With --data also which of them are there.
    """
    from nvlm.evaluate.suite.table import print_benchmarks

    print_benchmarks(data)


@other_verbs.command("rescore", short_help="Score the answers of --suite again.")
def rescore_command(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=path_of_user, metavar="FOLDER", help="A folder that --suite has written."
        ),
    ],
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Score what is there, though answers are gone."),
    ] = False,
) -> None:
    """Score the answers in FOLDER again, from the files of predictions alone."""
    from nvlm.evaluate.suite.scores import score_all
    from nvlm.evaluate.suite.table import print_scores
    from nvlm.views.suite_page import write_suite_page

    print_scores(score_all(folder, allow_missing))
    say(f"scores: {folder}\nwith examples: {write_suite_page(folder)}")


@other_verbs.command("mir", short_help="Measure how far image tokens are from text tokens.")
def mir_command(
    checkpoint: ModelToAsk,
    data_root: Annotated[
        Path,
        typer.Option(parser=path_of_user, metavar="DIR", help="Folder with the split's shards."),
    ],
    out: Annotated[
        Path, typer.Option(parser=path_of_user, metavar="FILE", help="JSON file to write.")
    ],
    split: Annotated[str, typer.Option(help="Whose samples are read.")] = "heldout",
    samples: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="At most so many, spread over the tasks.")
    ] = 100,
) -> None:
    """Measure the modality integration rate (arXiv 2410.07167) of a checkpoint.

    The logarithm of the distances between image and text tokens in the decoder's layers: how well
    a pretrained connector speaks the language model's tongue, before any SFT. Less is better.
    """
    launched()
    from nvlm.evaluate.mir import measure_mir

    measure_mir(checkpoint, data_root, split, samples, out)


@other_verbs.command("compare", short_help="Compare two folders of --suite.")
def compare_command(
    first: Annotated[
        Path,
        typer.Argument(parser=path_of_user, metavar="A", help="A folder that --suite has written."),
    ],
    second: Annotated[Path, typer.Argument(parser=path_of_user, metavar="B", help="Another one.")],
    examples: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Questions to show of each kind.")
    ] = 3,
) -> None:
    """Compare the scores of two checkpoints on the same questions, asked alike.

    Pairs answers by question: difference, its 95 % interval (bootstrap), p value, and questions
    that only one answers right.
    """
    from nvlm.evaluate.suite.compare import compare
    from nvlm.evaluate.suite.table import print_comparison

    print_comparison(*compare(first, second), examples)
