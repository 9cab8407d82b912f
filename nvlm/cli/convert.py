"""`nvlm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from nvlm.cli.app import convert_app
from nvlm.cli.arguments import CONFIG_HELP, Checkpoint, Overrides, path_of_user
from nvlm.launch import launched, rank_to_speak
from nvlm.places import check_folder


def check_beside(out: Path) -> None:
    """A folder that is written beside `out` and renamed."""
    if launched().rank == 0:
        check_folder(out.parent, "OUT")


@convert_app.command("from-hf", short_help="Make a checkpoint from Hugging Face folders.")
def convert_from_hf_command(
    out: Annotated[
        Path,
        typer.Argument(parser=path_of_user, metavar="OUT", help="The checkpoint folder to write."),
    ],
    config: Annotated[Path, typer.Option(metavar="CONFIG", help=CONFIG_HELP)],
    vision: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="DIR",
            help="Hugging Face folder of an InternViT or of a timm model, or a hub id "
            "(OWNER/NAME@REVISION); goes with --language. Of encoders side by side one for each, "
            "in their order.",
        ),
    ] = None,
    language: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="DIR",
            help="Hugging Face folder of a decoder (Qwen2, Qwen3, Llama, Mistral, Qwen3-MoE), or a "
            "hub id; goes with --vision.",
        ),
    ] = None,
    nvlm: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="DIR",
            help="Folder of an NVLM-D as released, or an export, or a hub id; instead of the two.",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Make a checkpoint from a pretrained InternViT and a pretrained decoder, or from an NVLM-D."""
    launched()
    from nvlm.config import load_runs
    from nvlm.errors import ConvertError

    checked = next(iter(load_runs(config, overrides or []).values()))  # what the first stage loads
    check_beside(out)
    from nvlm.convert import convert_from_hf, convert_from_nvlm

    if nvlm is not None and not vision and language is None:
        convert_from_nvlm(nvlm, checked, out)
    elif nvlm is None and vision and language is not None:
        convert_from_hf(vision, language, checked, out)
    else:
        raise ConvertError("give either --vision and --language, or --nvlm")


@convert_app.command("to-hf", short_help="Write a checkpoint as a Hugging Face folder.")
def convert_to_hf_command(
    checkpoint: Checkpoint,
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
    check_beside(out)
    from nvlm.convert.to_hf import convert_to_hf

    convert_to_hf(checkpoint, out, dtype, shard_size)


@convert_app.command("merge", short_help="Put adapters into the model they were trained with.")
def convert_merge_command(
    checkpoint: Checkpoint,
    out: Annotated[
        Path,
        typer.Argument(parser=path_of_user, metavar="OUT", help="The checkpoint folder to write."),
    ],
) -> None:
    """Write a checkpoint with its adapters (stage.adapters) put into the model's matrices."""
    launched()
    check_beside(out)
    from nvlm.convert.adapters.merge import merge_adapters

    merge_adapters(checkpoint, out)


@convert_app.command("upcycle", short_help="Make experts of the MLPs of a dense model.")
def convert_upcycle_command(
    checkpoint: Checkpoint,
    out: Annotated[
        Path,
        typer.Argument(parser=path_of_user, metavar="OUT", help="The checkpoint folder to write."),
    ],
    num_experts: Annotated[int, typer.Option(min=2, help="Experts of each layer that has them.")],
    top_k: Annotated[int, typer.Option(min=2, help="Experts that each token goes through.")] = 2,
    every_nth_layer: Annotated[
        int, typer.Option(min=1, help="Which layers have experts: the last of every so many.")
    ] = 1,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Of the routers' weights; train.seed where not given."),
    ] = None,
) -> None:
    """Write a checkpoint whose decoder has experts (model.language.moe), copies of its MLPs."""
    launched()
    check_beside(out)
    from nvlm.config.experts import ExpertsConfig
    from nvlm.convert.upcycle import upcycle

    experts = ExpertsConfig(num_experts=num_experts, top_k=top_k, every_nth_layer=every_nth_layer)
    upcycle(checkpoint, out, experts, seed)


@convert_app.command("adapters", short_help="Write adapters alone, for peft, or read peft's.")
def convert_adapters_command(
    checkpoint: Checkpoint,
    out: Annotated[
        Path, typer.Argument(parser=path_of_user, metavar="OUT", help="The folder to write.")
    ],
    peft: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="DIR",
            help="Folder that peft saved, or a hub id: its adapters go beside the model of "
            "CHECKPOINT, which has none, into the checkpoint OUT.",
        ),
    ] = None,
) -> None:
    """Write a checkpoint's adapters alone, as peft loads them over an export of the model.

    With --peft the other way: a checkpoint with the adapters of a peft folder.
    """
    launched()
    check_beside(out)
    from nvlm.convert.adapters.from_peft import convert_from_peft
    from nvlm.convert.adapters.to_peft import convert_to_peft

    if peft is None:
        convert_to_peft(checkpoint, out)
    else:
        convert_from_peft(checkpoint, peft, out)


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
