"""A page to edit pictures in a browser: ``python -m image_editing.page --model FOLDER --port 7860``."""

from __future__ import annotations

import argparse
import html
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from PIL import Image

import devicekit as dk
from image_editing.command import HOST, add_model_options, check_port, opened, run
from image_editing.editor import Editor, Failed
from image_editing.state import state
from image_editing.wish import Wish, read_picture

__all__ = ["build", "main"]

THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
"""With the reader's own fonts: gradio's would be fetched from elsewhere."""
PROGRESS = gr.Progress()
"""As a default value it tells gradio to hand in the bar of this call."""
Pictures = list[tuple[Image.Image, str]]


class Page:
    """What the buttons do.

    Args:
        editor: shared by all visitors; their edits wait for each other.
    """

    def __init__(self, editor: Editor) -> None:
        self.editor = editor

    def one(
        self, path: str | None, prompt: str, *figures: float, progress: gr.Progress = PROGRESS
    ) -> tuple[Image.Image, str]:
        """The edited picture, and what it took."""
        try:
            if path is None:
                raise dk.DeviceKitError("There is no picture.", try_="upload one first")
            wish = _wish(prompt, figures)
            edited = self.editor.edit(read_picture(path), wish, lambda done, steps: progress((done, steps)))
        except dk.DeviceKitError as error:
            raise _told(error) from error
        return edited.picture, f"{edited.seconds:.2f} s"

    def batch(
        self, paths: list[str] | None, prompts: str, *figures: float, progress: gr.Progress = PROGRESS
    ) -> Iterator[tuple[Pictures, str]]:
        """Every picture with every line of the prompts; the gallery grows, and the report says what failed."""
        try:
            lines = [line for line in prompts.splitlines() if line.strip()]
            if not paths or not lines:
                raise dk.DeviceKitError("There is nothing to do.", try_="at least one picture and one line of words")
            wishes = [(path, _wish(line, figures)) for path in paths for line in lines]
        except dk.DeviceKitError as error:
            raise _told(error) from error
        pictures: Pictures = []
        failed: list[str] = []
        progress((0, len(wishes)), unit="pictures")
        for done, (name, outcome) in enumerate(self.editor.edit_all(wishes), 1):
            if isinstance(outcome, Failed):
                failed.append(f"{name}\n{outcome.words}")
            else:
                pictures.append((outcome.picture, name))
            progress((done, len(wishes)), unit="pictures")
            yield pictures, "\n\n".join([f"{done} of {len(wishes)} done, {len(failed)} failed", *failed])

    def state(self) -> str:
        """The device's state now, as a table."""
        rows = {**state(self.editor.dm), "memory mode": self.editor.memory_words, "asked at": time.strftime("%H:%M:%S")}
        lines = [f"<tr><th>{html.escape(name)}</th><td>{_lines(words)}</td></tr>" for name, words in rows.items()]
        return f"<table>{''.join(lines)}</table>"


def build(editor: Editor, *, refresh: float = 2.0) -> gr.Blocks:
    """The page, not yet served.

    Args:
        editor: that does the work.
        refresh: seconds between two questions for the device's state.
    """
    page = Page(editor)
    with gr.Blocks(title="Image editing", analytics_enabled=False) as blocks:
        gr.Markdown("# Image editing")
        with gr.Accordion("Device", open=True):
            shown = gr.HTML(page.state(), elem_id="state")
        with gr.Tab("One picture"):
            _one_picture(page)
        with gr.Tab("Batch"):
            _batch(page)
        gr.Timer(refresh).tick(page.state, outputs=shown, queue=False, show_progress="hidden", api_visibility="private")
    return blocks


def _one_picture(page: Page) -> None:
    with gr.Row():
        with gr.Column():
            # By its path and as it is: read_picture decides what a picture is, here and on the command line.
            picture = gr.Image(label="Picture", type="filepath", image_mode=None, sources=["upload"], elem_id="picture")
            prompt = gr.Textbox(label="Prompt", placeholder="make it evening", elem_id="prompt")
            figures = _figures("one")
            button = gr.Button("Edit", variant="primary", elem_id="edit")
        with gr.Column():
            buttons: list[Any] = ["download", "fullscreen"]
            result = gr.Image(label="Result", format="png", interactive=False, buttons=buttons, elem_id="result")
            words = gr.Textbox(label="Took", interactive=False)
    button.click(page.one, [picture, prompt, *figures], [result, words], concurrency_id="device", api_name="edit")


def _batch(page: Page) -> None:
    pictures = gr.File(label="Pictures", file_count="multiple", elem_id="pictures")
    prompts = gr.Textbox(label="Prompts, one a line", lines=3, elem_id="prompts")
    figures = _figures("batch")
    button = gr.Button("Edit all", variant="primary", elem_id="edit-all")
    gallery = gr.Gallery(label="Results", format="png", columns=4, buttons=["download"], elem_id="gallery")
    report = gr.Textbox(label="Report", lines=4, interactive=False, elem_id="report")
    outputs: list[Any] = [gallery, report]
    button.click(page.batch, [pictures, prompts, *figures], outputs, concurrency_id="device", api_name="batch")


def _figures(where: str) -> list[Any]:
    """Seed, steps, strength and guidance, in the order of :class:`Wish`."""
    with gr.Row():
        return [
            gr.Number(Wish.seed, label="Seed", precision=0, elem_id=f"{where}-seed"),
            gr.Number(Wish.steps, label="Steps", precision=0, elem_id=f"{where}-steps"),
            gr.Slider(0.05, 1.0, Wish.strength, step=0.05, label="Strength"),
            gr.Slider(1.0, 10.0, Wish.guidance, step=0.5, label="Guidance"),
        ]


def _wish(prompt: str, figures: Sequence[float | None]) -> Wish:
    seed, steps, strength, guidance = figures
    if seed is None or steps is None or strength is None or guidance is None:
        raise dk.DeviceKitError("A figure is missing.", try_="a seed, the steps, a strength and a guidance")
    return Wish(prompt, int(seed), int(steps), strength, guidance)


def _lines(words: str) -> str:
    return html.escape(words).replace("\n", "<br>")


def _told(error: dk.DeviceKitError) -> gr.Error:
    return gr.Error(_lines(str(error)), print_exception=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page on this machine until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m image_editing.page", description=__doc__)
    add_model_options(parser)
    parser.add_argument("--port", type=int, default=7860, help="on 127.0.0.1 (default: 7860)")
    parser.add_argument("--refresh", type=float, default=2.0, metavar="SECONDS", help="of the device's state")
    arguments = parser.parse_args(argv)
    return run(lambda: _serve(arguments))


def _serve(arguments: argparse.Namespace) -> int:
    check_port(arguments.port)
    editor = opened(arguments)
    page = build(editor, refresh=arguments.refresh)
    where: dict[str, Any] = {"server_name": HOST, "server_port": arguments.port}
    _, address, _ = page.launch(**where, theme=THEME, show_error=True, quiet=True, prevent_thread_lock=True)
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
