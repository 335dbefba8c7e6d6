"""The Flower ServerApp around a function of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context  # pyright: ignore[reportMissingImports]
from flwr.serverapp import Grid, ServerApp  # pyright: ignore[reportMissingImports]

from .plain_http import reject_plain_http


def server_app(main: Callable[[Any, Mapping[str, Any]], None]) -> ServerApp:
    """An app that calls `main(grid, run configuration)`."""
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        reject_plain_http(context.run_config, "set allow-plain-http = true in the run configuration")
        main(grid, context.run_config)

    return app
