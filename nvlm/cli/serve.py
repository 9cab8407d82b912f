"""`nvlm serve`."""

from __future__ import annotations

import os
from typing import Annotated, Optional

import typer

from nvlm.cli.app import app
from nvlm.cli.arguments import LARGEST, ModelToAsk, Pipeline, Tensor
from nvlm.errors import ConfigError
from nvlm.launch import launched


@app.command("serve", short_help="Answer over HTTP, as OpenAI's API does.")
def serve_command(
    checkpoint: ModelToAsk,
    host: Annotated[
        str, typer.Option(help="Where to listen; others than this machine's own need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    api_key: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="What clients must send; better in NVLM_API_KEY, which other users do not see.",
        ),
    ] = None,
    max_image_megapixels: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=0.001,
            max=LARGEST,
            help="Of a request's images together; the checkpoint's where not given.",
        ),
    ] = None,
    max_request_mb: Annotated[
        float, typer.Option(min=0.001, max=LARGEST, help="Of a request's body.")
    ] = 50.0,
    max_images: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="In a request, all its turns together.")
    ] = 16,
    max_queue: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Requests at once; more are refused.")
    ] = 64,
    timeout_seconds: Annotated[
        float, typer.Option(min=0.001, max=LARGEST, help="For a request and its whole answer.")
    ] = 600.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Most tokens of an answer.")
    ] = 1024,
    tensor: Tensor = None,
    pipeline: Pipeline = None,
) -> None:
    """Answer questions about images over HTTP, as OpenAI's API does, until Ctrl-C."""
    launched()
    # Not by typer: to it a variable that is empty is not set, and the server would ask for no key.
    key = os.environ.get("NVLM_API_KEY") if api_key is None else api_key
    if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
        raise ConfigError("NVLM_API_KEY (or --api-key) must be printable ASCII, and not empty")
    from nvlm.serve.limits import Limits
    from nvlm.serve.run import Options, serve

    limits = Limits(0, max_request_mb, max_images, max_queue, timeout_seconds, max_new_tokens)
    options = Options(
        host,
        port,
        key.strip() if key else None,
        max_image_megapixels,
        limits,
        tensor,
        pipeline,
    )
    code = serve(checkpoint, options)
    raise typer.Exit(code)
