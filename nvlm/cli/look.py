"""`nvlm config` and `nvlm model`."""

from __future__ import annotations

from typing import Annotated

import typer

from nvlm.cli.app import config_app, model_app
from nvlm.cli.arguments import ConfigFile, Overrides, StageName, runs_to_show
from nvlm.launch import planned_world_size


@config_app.command("show", short_help="Print the resolved configuration and its numbers.")
def config_show(config: ConfigFile, overrides: Overrides = None, stage: StageName = None) -> None:
    """Print the resolved configuration and the numbers that follow from it.

    Of a file with stages all of them, as a file of stages again, or the one that --stage names.
    """
    from nvlm.views.config import show

    show(config, overrides or [], planned_world_size(), stage)


@config_app.command("list", short_help="List the configurations that come with nvlm.")
def config_list() -> None:
    """List the configurations that come with nvlm: name, parameters, what for.

    Every CONFIG of other verbs may be such a name.
    """
    from nvlm.views.config_list import print_list

    print_list()


@model_app.command("summary", short_help="Count parameters by part and pipeline stage.")
def model_summary(
    config: ConfigFile,
    overrides: Overrides = None,
    stage: StageName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Build the model without memory for it, and count its parameters by part and stage."""
    for run in runs_to_show(config, overrides or [], stage, as_json):
        from nvlm.views.model import print_summary

        print_summary(run, as_json)
