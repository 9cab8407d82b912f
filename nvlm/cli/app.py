"""The application and its groups of verbs; the other files of this folder add the verbs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from nvlm.printing import say


class Ended(Exception):
    """An error on its way to `main`: typer makes `Aborted.` of some."""

    def __init__(self, error: BaseException):
        super().__init__(error)
        self.error = error


class _Verbs(TyperGroup):
    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (EOFError, KeyboardInterrupt, OSError) as error:
            raise Ended(error) from error


class VerbOrArguments(TyperCommand):
    """A verb with arguments of its own, which hands over to another where that is named first.

    `verbs` has the others: `nvlm evaluate compare A B` is `compare` of `nvlm evaluate`, whose own
    first argument is a folder (`./compare` is one of that name).
    """

    verbs: typer.Typer

    @property
    def commands(self) -> dict[str, Any]:
        group: Any = typer.main.get_command(self.verbs)
        return group.commands

    def make_context(self, info_name, args, parent=None, **extra):
        verb = self.commands.get(args[0]) if args else None
        if verb is None:
            return super().make_context(info_name, args, parent, **extra)
        return verb.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


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
