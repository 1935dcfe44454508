"""A model behind HTTP: ``python -m numpy_gpt.service --model FOLDER --port 8000``."""

from __future__ import annotations

import argparse
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from numpy_gpt.command import add_device, device, ended, tell
from numpy_gpt.errors import BadInput
from numpy_gpt.sampling import Writer

__all__ = ["create_app", "main"]


class Asked(BaseModel):
    """What to write."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=10_000)
    count: int = Field(200, ge=1, le=2000)
    temperature: float = Field(0.8, ge=0, le=100)
    top_k: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**32)


def create_app(writer: Writer) -> FastAPI:
    """The service for a model."""
    app = FastAPI(title="numpy_gpt")

    @app.exception_handler(BadInput)
    def refuse(_: Request, error: BadInput) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(RequestValidationError)
    def refuse_form(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": "; ".join(_sentence(each) for each in error.errors())}, status_code=422)

    @app.exception_handler(HTTPException)
    def refuse_path(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)

    @app.post("/v1/generate")
    def generate(asked: Asked) -> dict[str, Any]:
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        with writer.dm.measure("writing") as writing:
            text = "".join(
                writer.write(asked.prompt, asked.count, temperature=asked.temperature, top_k=asked.top_k, seed=seed)
            )
        return {"text": text, "seed": seed, "seconds": writing.seconds}

    @app.get("/v1/readyz")
    def readyz() -> dict[str, Any]:
        model = {"context": writer.model.shape.context, "characters": writer.tokenizer.characters}
        return {"ready": True, "model": model, "device": writer.dm.report()}

    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, load, serve until told to stop."""
    options = _parser().parse_args(argv)
    return ended(lambda: serve(options))


def serve(options: argparse.Namespace) -> None:
    """Serve on a port of this machine.

    Raises:
        BadInput: there is no model, or the port is taken.
        devicekit.DeviceKitError: the device or the file refuses.
    """
    if not 0 <= options.port < 2**16:
        raise BadInput(f"--port must be from 0 to 65535, and is {options.port}")
    app = create_app(Writer.load(options.model, device(options.device)))
    try:
        listening = socket.create_server((options.host, options.port))
    except OSError as error:
        raise BadInput(f"{options.host}:{options.port} cannot be listened to: {error}") from None
    with listening:
        host, port = listening.getsockname()[:2]
        tell(f"serving on http://{host}:{port}")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _sentence(problem: dict[str, Any]) -> str:
    """``count: Input should be ...``."""
    place = ".".join(str(part) for part in problem["loc"] if isinstance(part, str) and part != "body")
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="numpy_gpt.service", description="Let a model write, over HTTP.")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="what numpy_gpt.train saved into")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: one that is free (8000)")
    add_device(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
