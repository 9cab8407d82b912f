"""`nvlm generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from nvlm.cli.app import app
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
from nvlm.launch import launched, rank_to_speak
from nvlm.printing import say

if TYPE_CHECKING:
    from nvlm.config.schema import ParallelConfig
    from nvlm.generate.asked_files import AskedTogether
    from nvlm.generate.request import Sampling
    from nvlm.generate.thrift import Thrift

Prompt = Annotated[Optional[str], typer.Option(help="What to ask.")]  # noqa: UP045
Images = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        parser=path_of_user,
        metavar="FILE",
        help="An image file; repeat for several, in the order of their marks.",
    ),
]
Folder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        parser=path_of_user, metavar="DIR", help="Ask --prompt about each image in it and below it."
    ),
]
Questions = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        parser=path_of_user,
        metavar="FILE",
        help="JSON lines with prompt (or messages), images, id.",
    ),
]
Out = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        parser=path_of_user,
        metavar="FILE",
        help="JSON lines to write, of --folder or --questions; goes on with one that is there.",
    ),
]
System = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="A system message in place of the training stage's."),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, max=LARGEST, help="Most tokens to answer with.")]
Temperature = Annotated[float, typer.Option(min=0, help="0: always the most likely token.")]
TopP = Annotated[
    float,
    typer.Option(min=0, max=1, help="Draw from the most likely tokens of this share together."),
]
TopK = Annotated[int, typer.Option(min=0, max=LARGEST, help="Draw from so many tokens; 0: all.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST, help="Of the draws.")]
Stop = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(metavar="TEXT", help="Ends an answer, and is not part of it; repeat."),
]


@app.command("generate", short_help="Answer prompts about images.")
def generate_command(
    checkpoint: ModelToAsk,
    prompt: Prompt = None,
    image: Images = None,
    folder: Folder = None,
    questions: Questions = None,
    out: Out = None,
    system: System = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    stop: Stop = None,
    keep_visual_tokens: KeepVisualTokens = 1.0,
    keep_cache: KeepCache = 1.0,
    tensor: Tensor = None,
    pipeline: Pipeline = None,
) -> None:
    """Answer a prompt about images, or many, with a checkpoint.

    One --prompt is answered on the terminal; --folder and --questions write a row for each answer
    to --out, and go on where they were ended. Decoding is greedy unless --temperature is given.

    Several processes take the layout that the model was trained with, or else one at which it
    fits, unless --tensor or --pipeline say another; those beyond a replica answer other questions.
    """
    launched()
    _check_together(prompt, image, folder, questions, out)
    from nvlm.generate.asked import check_system
    from nvlm.generate.request import Sampling
    from nvlm.generate.thrift import Thrift

    check_system(system)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed, tuple(stop or ()))
    thrift = Thrift(keep_visual_tokens, keep_cache)
    layout = None
    if tensor is not None or pipeline is not None:
        from nvlm.config.schema import ParallelConfig

        layout = ParallelConfig(tensor=tensor or 1, pipeline=pipeline or 1)
    if out is None:
        assert prompt is not None
        _answer_one(checkpoint, prompt, image or [], system, sampling, layout, thrift)
        return
    together = _read(prompt, folder, questions, system, sampling)
    from nvlm.generate.ask import ask_all

    ask_all(checkpoint, together, out, system, sampling, layout, thrift)


def _answer_one(
    checkpoint: Path,
    prompt: str,
    images: list[Path],
    system: str | None,
    sampling: Sampling,
    layout: ParallelConfig | None,
    thrift: Thrift,
) -> None:
    """On a terminal as it comes, else when it is whole."""
    from nvlm.generate.answer import answer

    is_terminal = sys.stdout.isatty()
    show = _show if is_terminal else _show_nothing
    text = answer(checkpoint, prompt, images, sampling, system, layout, show, thrift)
    if rank_to_speak() == 0:
        say("" if is_terminal else text)


def _read(
    prompt: str | None,
    folder: Path | None,
    questions: Path | None,
    system: str | None,
    sampling: Sampling,
) -> AskedTogether:
    from nvlm.generate.asked_files import asked_of_file, asked_of_folder

    if questions is not None:
        return asked_of_file(questions, system, sampling)
    assert folder is not None and prompt is not None
    return asked_of_folder(folder, prompt, system, sampling)


def _check_together(
    prompt: str | None,
    image: list[Path] | None,
    folder: Path | None,
    questions: Path | None,
    out: Path | None,
) -> None:
    """Raise `ConfigError` unless it is clear what is asked."""
    problem = None
    if questions is not None and (prompt is not None or image or folder is not None):
        problem = "--questions has prompts and images: give no --prompt, --image or --folder"
    elif questions is None and prompt is None:
        problem = "give --prompt, or --questions with many"
    elif folder is not None and image:
        problem = "--folder or --image, not both"
    elif (questions is not None or folder is not None) and out is None:
        problem = "missing option '--out', a file for the answers"
    elif questions is None and folder is None and out is not None:
        problem = "--out is for --folder and --questions: one answer is printed"
    elif questions is not None and out is not None and out.resolve() == questions.resolve():
        problem = f"--out {out} is the file of --questions; give another for the answers"
    if problem:
        raise ConfigError(f"nvlm generate: {problem}; see `nvlm generate --help`")


def _show(piece: str) -> None:
    say(piece, end="")


def _show_nothing(piece: str) -> None:
    del piece
