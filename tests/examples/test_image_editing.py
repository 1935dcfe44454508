"""The image editing of docs/examples: from the command line, in a browser, and its promises one by one."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import devicekit as dk
from tests.examples.conftest import EXAMPLES

# What diffusers, transformers and gradio warn of in themselves is not what is tested.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

if missing := [name for name in ("diffusers", "gradio", "transformers") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"not installed: {', '.join(missing)}; pip install devicekit[examples]", allow_module_level=True)

PROMPT = "make it evening"
QUICK = ("--steps", "2", "--seed", "1", "--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``model``, ``lora.safetensors`` and ``in.png``; the example can be imported meanwhile."""
    folder = tmp_path_factory.mktemp("image_editing")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        patch.setenv("HF_HUB_OFFLINE", "1")
        from image_editing.make import main

        with single_thread(), contextlib.redirect_stdout(io.StringIO()):
            lora, picture = folder / "lora.safetensors", folder / "in.png"
            assert main(["--out", str(folder / "model"), "--lora", str(lora), "--picture", str(picture)]) == 0
        yield folder


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    with single_thread():
        yield


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """The models are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def editor(made: Path) -> Any:
    """A fresh one, on the processor, in float32."""
    from image_editing.editor import Editor

    return Editor.open(made / "model", dk.DeviceManager("cpu", dtype=torch.float32))


@pytest.fixture
def picture(made: Path) -> Image.Image:
    """To edit."""
    from image_editing.wish import read_picture

    return read_picture(made / "in.png")


def wish(prompt: str = PROMPT, **figures: Any) -> Any:
    """Two steps are enough to tell pictures apart."""
    from image_editing.wish import Wish

    return Wish(prompt, **{"steps": 2, "seed": 1, **figures})


def pixels(picture: Any) -> Any:
    """Levels of 0 to 255, of a file or a picture."""
    return np.asarray(picture if isinstance(picture, Image.Image) else Image.open(picture).convert("RGB")).astype(int)


def edit(made: Path, *more: str) -> int:
    """The command line, in this process."""
    from image_editing.edit import main

    return main(["--model", str(made / "model"), "--image", str(made / "in.png"), "--prompt", PROMPT, *QUICK, *more])


# -- as its users run it -------------------------------------------------------------------------
def test_a_model_is_made_and_edits_a_picture(tmp_path: Path, user: dict[str, str], python: str) -> None:
    """Two commands, offline: the result has the picture's size, and the device's state is told in words."""

    def program(name: str, *arguments: str) -> str:
        command = [python, "-m", f"image_editing.{name}", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env={**user, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert program("make", "--out", "model", "--picture", "in.png", "--lora", "l.safetensors").count("made ") == 3
    said = program(
        "edit", "--model", "model", "--image", "in.png", "--prompt", PROMPT, "--seed", "1", "--out", "out.png",
        "--steps", "2", "--save-memory", "--lora", "l.safetensors", "--device", "auto",
    )  # fmt: skip
    assert Image.open(tmp_path / "out.png").size == Image.open(tmp_path / "in.png").size
    assert pixels(tmp_path / "out.png").std() > 5
    for words in ("device: ", "numbers: ", "attention: ", "warning: none", "available: ", "on   VAE tiling", "LoRA: 4"):
        assert words in said, words


# -- the page ------------------------------------------------------------------------------------
@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window, and without any network but this machine's."""
    pytest.importorskip("selenium")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("the page was NOT tested: install chromium and chromedriver (apt install chromium chromium-driver)")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = chromium
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,1600"):
        options.add_argument(f"--{switch}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    started = Chrome(options=options, service=ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture
def address(made: Path, user: dict[str, str], python: str, tmp_path: Path) -> Iterator[str]:
    """Where a page for the model is served."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-m", "image_editing.page", "--model", str(made / "model"), "--port", str(port)]
    command += ["--device", "cpu", "--dtype", "float32", "--refresh", "0.5"]
    with (tmp_path / "page.log").open("w+") as log:
        env = {**user, "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


class Visitor:
    """Somebody with a browser."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        until(lambda: urllib.request.urlopen(address, timeout=5).status == 200)
        browser.get(address)
        until(lambda: self.find("#edit").is_displayed())

    def find(self, selector: str) -> Any:
        """The first of these elements."""
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str = "body") -> str:
        """What can be read there; of a field, what stands in it."""
        element = self.find(selector)
        return str(element.get_property("value") if element.tag_name == "textarea" else element.text)

    def write(self, selector: str, text: str) -> None:
        """In place of what stands there."""
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def pictures(self, selector: str) -> list[Any]:
        """Those that are shown there, as pixels."""
        sources = [image.get_attribute("src") for image in self.browser.find_elements("css selector", selector)]
        return [pixels(Image.open(urllib.request.urlopen(source)).convert("RGB")) for source in sources]

    def asked_for(self) -> set[str]:
        """The hosts that the browser wanted to reach."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {url.split("/")[2].partition(":")[0] for url in urls if url.startswith(("http", "ws"))}


def until(true: Callable[[], Any], seconds: float = 90) -> Any:
    """Wait for something; what is raised on the way is a not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := true():
                return found
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def test_the_page_in_a_browser(made: Path, browser: Any, address: str, tmp_path: Path) -> None:
    """An edit by click gives the command line's picture, the state refreshes, a batch outlives a broken file."""
    visitor = Visitor(browser, address)
    check_the_state_refreshes(visitor)
    check_a_bad_input_is_told(visitor, tmp_path)
    check_an_edit_by_click(visitor, made, tmp_path)
    check_a_batch(visitor, made, tmp_path)
    assert visitor.asked_for() == {"127.0.0.1"}, "the page works without a network"


def check_the_state_refreshes(visitor: Visitor) -> None:
    """Device, number format, warning and memory are there, and are asked for anew by themselves."""
    first = visitor.text("#state")
    for words in ("cpu", "float32", "warning none", "available", "MiB", "flash"):
        assert words in first, first
    until(lambda: visitor.text("#state") != first)


def check_a_bad_input_is_told(visitor: Visitor, tmp_path: Path) -> None:
    """Without a picture, and with a file that is none, the page says what is wrong."""
    visitor.find("#edit").click()
    until(lambda: "There is no picture." in visitor.text() and "upload one first" in visitor.text())
    (tmp_path / "broken.png").write_text("no picture")
    visitor.find("#picture input[type=file]").send_keys(str(tmp_path / "broken.png"))
    until(lambda: visitor.find("#picture img"))
    visitor.find("#edit").click()
    until(lambda: "cannot identify image file" in visitor.text())
    visitor.find("#picture button[aria-label='Remove Image']").click()
    visitor.write("#prompt textarea", PROMPT)


def check_an_edit_by_click(visitor: Visitor, made: Path, tmp_path: Path) -> None:
    """The same seed gives what the command line gives, byte for byte."""
    visitor.find("#picture input[type=file]").send_keys(str(made / "in.png"))
    until(lambda: visitor.find("#picture img").is_displayed())
    visitor.write("#one-steps input", "2")
    visitor.write("#one-seed input", "1")
    visitor.find("#edit").click()
    (shown,) = until(lambda: visitor.pictures("#result img"))
    assert edit(made, "--out", str(tmp_path / "out.png")) == 0
    assert np.array_equal(shown, pixels(tmp_path / "out.png"))


def check_a_batch(visitor: Visitor, made: Path, tmp_path: Path) -> None:
    """Two prompts for a picture and a broken file: two pictures, and words for the other two."""
    broken = tmp_path / "broken.png"
    next(tab for tab in visitor.browser.find_elements("css selector", "[role=tab]") if tab.text == "Batch").click()
    upload = visitor.find("#pictures input[type=file]")
    upload.send_keys(f"{broken}\n{made / 'in.png'}")
    until(lambda: {"broken", "in"} <= set(visitor.text("#pictures").replace(".png", "").split()))
    visitor.write("#prompts textarea", f"{PROMPT}\nmake it snow")
    visitor.write("#batch-steps input", "2")
    visitor.write("#batch-seed input", "1")
    visitor.find("#edit-all").click()
    until(lambda: "4 of 4 done, 2 failed" in visitor.text("#report textarea"))
    assert "broken.png is no picture." in visitor.text("#report textarea")
    first, second = until(lambda: len(found := visitor.pictures("#gallery .grid-container img")) == 2 and found)
    assert np.array_equal(first, pixels(tmp_path / "out.png"))
    assert not np.array_equal(first, second)


def test_a_port_that_is_taken(made: Path) -> None:
    """It is refused in words, before a model is loaded; so is a number that is no port."""
    from image_editing.command import check_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for number in (port, 70000):
            with pytest.raises(dk.DeviceKitError, match=f"Port {number} cannot be used"):
                check_port(number)
    check_port(port)


def test_the_page_of_the_docs_shows_the_code() -> None:
    """Every line of Python on it stands in the example."""
    folder = EXAMPLES / "image_editing"
    code = {line.strip() for path in folder.glob("*.py") for line in path.read_text(encoding="utf-8").splitlines()}
    blocks = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    shown = [line.strip() for block in blocks for line in block.splitlines()]
    assert len(shown) > 20
    assert [line for line in shown if line not in code] == []


# -- what is made --------------------------------------------------------------------------------
def weights(folder: Path) -> dict[str, bytes]:
    """The bytes of every model."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_a_seed_makes_the_same_model(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the byte, and another seed another one; the caller's own random numbers go on as they would."""
    from image_editing.make import main

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert main(["--out", str(tmp_path / "same")]) == 0
    assert torch.equal(torch.rand(3), expected)
    assert main(["--out", str(tmp_path / "other"), "--seed", "1"]) == 0
    assert len(weights(made / "model")) == 6
    assert weights(tmp_path / "same") == weights(made / "model")
    assert weights(tmp_path / "other") != weights(made / "model")


def test_the_folder_is_the_published_pipeline_s(made: Path) -> None:
    """diffusers itself loads it, and one of its text encoders is a Llama."""
    from diffusers import DiffusionPipeline, HiDreamImagePipeline
    from transformers import LlamaForCausalLM

    pipe = DiffusionPipeline.from_pretrained(made / "model", local_files_only=True)
    assert type(pipe) is HiDreamImagePipeline
    assert isinstance(pipe.text_encoder_4, LlamaForCausalLM)


def test_a_folder_with_something_in_it_stays(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """make does not write over what is there."""
    from image_editing.make import main

    before = weights(made / "model")
    assert main(["--out", str(made / "model"), "--seed", "5"]) == 2
    assert "something else is there already" in capsys.readouterr().err
    assert weights(made / "model") == before


@pytest.mark.parametrize("prompt", ["make it évening 夜", "a  b\n c", "<eos>"])
def test_every_text_can_be_written(made: Path, prompt: str) -> None:
    """The tokenizer gives back what it was given; a special token's name in a prompt counts as that token."""
    from image_editing.tiny import make_tokenizer

    tokenizer = make_tokenizer()
    ids = tokenizer(prompt).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids[1:-1]) == prompt


# -- edits ---------------------------------------------------------------------------------------
def test_what_an_edit_depends_on(editor: Any, picture: Image.Image) -> None:
    """The same wish gives the same bytes; seed, words, strength, guidance and steps each give others."""
    first = pixels(editor.edit(picture, wish()).picture)
    assert np.array_equal(pixels(editor.edit(picture, wish()).picture), first)
    for other in (wish(seed=2), wish("snow"), wish(strength=0.9), wish(guidance=9.0), wish(steps=3)):
        assert not np.array_equal(pixels(editor.edit(picture, other).picture), first), other


def test_a_weak_edit_stays_near_the_picture(editor: Any) -> None:
    """Two pictures edited alike differ the more, the less noise is in them; all noise forgets them."""
    from image_editing.tiny import sample_picture

    pictures = sample_picture(), sample_picture().transpose(Image.Transpose.ROTATE_180)

    def apart(strength: float) -> float:
        one, other = (pixels(editor.edit(each, wish(strength=strength)).picture) for each in pictures)
        return float(abs(one - other).mean())

    assert apart(0.1) > apart(0.6) > apart(1.0) == 0


@pytest.mark.parametrize("size", [(64, 64), (200, 61), (61, 200), (7, 9), (300, 40)])
def test_any_size_comes_back(editor: Any, picture: Image.Image, size: tuple[int, int]) -> None:
    """The model works in its own size; the result has the picture's."""
    assert editor.edit(picture.resize(size), wish(steps=1)).picture.size == size


def test_progress_is_told(editor: Any, picture: Image.Image) -> None:
    """Once after each step."""
    told: list[tuple[int, int]] = []
    edited = editor.edit(picture, wish(steps=3), lambda done, steps: told.append((done, steps)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert edited.seconds > 0


def test_the_device_can_draw_the_noise(editor: Any, picture: Image.Image) -> None:
    """On the processor its generator is the one that is used anyway."""
    own, drawn = (editor.edit(picture, wish(device_noise=each)).picture for each in (True, False))
    assert np.array_equal(pixels(own), pixels(drawn))


def test_sixteen_bits_are_the_default_where_they_are_native(made: Path, picture: Image.Image) -> None:
    """All weights are in the manager's dtype, and the picture is nearly that of float32."""
    from image_editing.editor import Editor

    dm = dk.DeviceManager("cpu", dtype=torch.bfloat16)
    half = Editor.open(made / "model", dm)
    assert {weight.dtype for weight in half.pipe.transformer.parameters()} == {torch.bfloat16}
    full = Editor.open(made / "model", dk.DeviceManager("cpu", dtype=torch.float32))
    assert abs(pixels(half.edit(picture, wish()).picture) - pixels(full.edit(picture, wish()).picture)).mean() < 5


def test_one_edit_at_a_time(editor: Any, picture: Image.Image) -> None:
    """Edits from several threads give what they give one after the other."""
    from concurrent.futures import ThreadPoolExecutor

    wishes = [wish(seed=seed) for seed in range(4)]
    expected = [pixels(editor.edit(picture, each).picture) for each in wishes]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: pixels(editor.edit(picture, each).picture), wishes))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


# -- LoRA ----------------------------------------------------------------------------------------
def state_of(editor: Any) -> dict[str, torch.Tensor]:
    """The transformer's weights, copied."""
    return {name: weight.detach().clone() for name, weight in editor.pipe.transformer.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """To the bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lora_is_added_and_undone(made: Path, dtype: torch.dtype) -> None:
    """The weights become W + scale * up @ down, applying again does not add up, and undo gives the very bits back."""
    from image_editing.editor import Editor
    from image_editing.lora import Lora

    dm = dk.DeviceManager("cpu", dtype=dtype)
    editor = Editor.open(made / "model", dm)
    factors = dm.load_safetensors(made / "lora.safetensors")
    before, lora = state_of(editor), Lora(editor.pipe.transformer, factors)
    assert (len(lora), lora.applied) == (4, False)
    lora.apply(0.25)
    lora.apply(0.5)
    layer = next(name for name in factors if name.endswith(".lora_A.weight")).removesuffix(".lora_A.weight")
    name = layer.removeprefix("transformer.") + ".weight"
    update = factors[f"{layer}.lora_B.weight"].float() @ factors[f"{layer}.lora_A.weight"].float()
    changed = state_of(editor)
    assert torch.equal(changed[name], (before[name].float() + 0.5 * update).to(dtype))
    assert sum(not torch.equal(before[each], changed[each]) for each in before) == 4
    lora.undo()
    lora.undo()
    assert same(state_of(editor), before)
    assert not lora.applied


def test_a_lora_needs_weights_that_are_here(made: Path) -> None:
    """Those that are offloaded layer by layer would swallow it in silence, so it is refused in words."""
    from image_editing.lora import Lora
    from image_editing.tiny import make_lora, make_pipeline

    pipe = make_pipeline()
    lora = Lora(pipe.transformer.to("meta"), make_lora(pipe, 2, 0))
    for use in (lora.apply, lora.undo):
        with pytest.raises(dk.DeviceKitError, match="offloaded layer by layer"):
            use()


def test_a_lora_changes_the_picture(made: Path, picture: Image.Image, editor: Any) -> None:
    """And without it the picture is the old one again."""
    from image_editing.editor import Editor

    with_lora = Editor.open(made / "model", editor.dm, lora=made / "lora.safetensors", lora_scale=2.0)
    plain = pixels(editor.edit(picture, wish()).picture)
    assert not np.array_equal(pixels(with_lora.edit(picture, wish()).picture), plain)
    with_lora.lora.undo()
    assert np.array_equal(pixels(with_lora.edit(picture, wish()).picture), plain)


Q = "transformer.double_stream_blocks.0.block.attn1.to_q"
MISFITS = {
    "no tensor": ({}, "no tensor"),
    "a strange name": ({f"{Q}.alpha": (1,)}, "its name ends"),
    "another model's layer": ({"transformer.x.lora_A.weight": (2, 32)}, "no layer of this name"),
    "another component's": ({"text_encoder.x.lora_A.weight": (2, 32)}, "no layer of this name"),
    "one factor": ({f"{Q}.lora_A.weight": (2, 32)}, "one of its two factors is missing"),
    "shapes": ({f"{Q}.lora_A.weight": (2, 31), f"{Q}.lora_B.weight": (32, 2)}, r"does not give \(32, 32\)"),
    "ranks": ({f"{Q}.lora_A.weight": (2, 32), f"{Q}.lora_B.weight": (32, 3)}, r"does not give \(32, 32\)"),
    "dimensions": ({f"{Q}.lora_A.weight": (32,), f"{Q}.lora_B.weight": (32, 2)}, r"does not give \(32, 32\)"),
}


@pytest.mark.parametrize(("shapes", "words"), MISFITS.values(), ids=MISFITS)
def test_a_lora_that_does_not_fit(editor: Any, shapes: dict[str, Any], words: str) -> None:
    """It is refused in words, and no weight is changed."""
    from image_editing.lora import Lora

    before = state_of(editor)
    with pytest.raises(dk.DeviceKitError, match=words):
        Lora(editor.pipe.transformer, {name: torch.ones(shape) for name, shape in shapes.items()})
    assert same(state_of(editor), before)


# -- what goes wrong -----------------------------------------------------------------------------
class Counting(dk.DeviceManager):
    """Counts how often the cache was emptied."""

    emptied = 0

    def empty_cache(self) -> None:
        Counting.emptied += 1
        super().empty_cache()


def test_memory_runs_out_in_an_edit(made: Path, picture: Image.Image) -> None:
    """It is told in words, the cache is emptied, and the next edit gives the picture."""
    from image_editing.editor import Editor

    editor = Editor.open(made / "model", Counting("cpu", dtype=torch.float32))
    expected, before = pixels(editor.edit(picture, wish()).picture), Counting.emptied

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nand a long tail")

    hook = editor.pipe.transformer.register_forward_hook(full)
    with pytest.raises(dk.DeviceKitError, match="too little memory on cpu to edit this picture") as told:
        editor.edit(picture, wish())
    hook.remove()
    assert told.value.why == "CUDA out of memory. Tried to allocate 20.00 GiB."
    assert told.value.__context__ is None, "the attempt's tensors would stay as long as its error"
    assert Counting.emptied == before + 1
    assert np.array_equal(pixels(editor.edit(picture, wish()).picture), expected)


def test_other_errors_come_through(editor: Any, picture: Image.Image) -> None:
    """What is no lack of memory is not called one, and the editor is free again."""

    def broken(*_: object) -> None:
        raise RuntimeError("a kernel failed")

    hook = editor.pipe.vae.decoder.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        editor.edit(picture, wish())
    hook.remove()
    assert editor.edit(picture, wish()).picture.size == picture.size


def test_one_of_many_fails(made: Path, editor: Any, tmp_path: Path) -> None:
    """The others are edited, whatever it was: words for a bad file, and the error's name for what nobody foresaw."""
    from image_editing.editor import Edited, Failed

    calls: list[int] = []

    def second(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a kernel failed")

    editor.pipe.vae.decoder.register_forward_hook(second)
    good, gone = made / "in.png", tmp_path / "gone.png"
    outcomes = dict(editor.edit_all([(good, wish("a")), (gone, wish("b")), (good, wish("c")), (good, wish("d"))]))
    assert [type(outcome) for outcome in outcomes.values()] == [Edited, Failed, Failed, Edited]
    assert "There is no file" in outcomes["gone.png: b"].words
    assert outcomes["in.png: c"].words == "RuntimeError: a kernel failed"


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no good, and what is said of them."""
    text, cut, narrow = folder / "text.png", folder / "cut.png", folder / "narrow.png"
    text.write_text("no picture")
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "PNG")
    cut.write_bytes(stream.getvalue()[:1000])
    Image.new("RGB", (90, 10)).save(narrow)
    return {
        "gone": (folder / "gone.png", "There is no file"),
        "text": (text, "text.png is no picture"),
        "cut": (cut, "cut.png cannot be read"),
        "narrow": (narrow, "narrow.png is too narrow"),
        "folder": (folder, "cannot be read"),
    }


@pytest.mark.parametrize("kind", ["gone", "text", "cut", "narrow", "folder"])
def test_a_picture_that_is_none(made: Path, tmp_path: Path, kind: str) -> None:
    """Each kind has its words."""
    from image_editing.wish import read_picture

    path, words = broken_files(tmp_path)[kind]
    with pytest.raises(dk.DeviceKitError, match=words):
        read_picture(path)


def test_a_picture_is_turned_as_it_was_taken(made: Path, tmp_path: Path) -> None:
    """A camera held upright writes that into EXIF; transparency is dropped."""
    from image_editing.wish import read_picture

    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees to see it upright
    Image.new("RGBA", (40, 20), (1, 2, 3, 0)).save(tmp_path / "turned.png", exif=exif)
    read = read_picture(tmp_path / "turned.png")
    assert (read.size, read.mode, read.getpixel((0, 0))) == ((20, 40), "RGB", (1, 2, 3))


BAD_FIGURES = {
    "no words": ({"prompt": "  "}, "There is no prompt"),
    "a negative seed": ({"seed": -1}, "seed is -1"),
    "a seed too large": ({"seed": 2**63}, "seed is 9"),
    "no steps": ({"steps": 0}, "steps is 0"),
    "too many steps": ({"steps": 1001}, "steps is 1001"),
    "no strength": ({"strength": 0.0}, "strength is 0"),
    "too strong": ({"strength": 1.1}, "strength is 1.1"),
    "no number": ({"strength": float("nan")}, "strength is nan"),
    "no guidance": ({"guidance": 0.5}, "guidance is 0.5"),
}


@pytest.mark.parametrize(("figures", "words"), BAD_FIGURES.values(), ids=BAD_FIGURES)
def test_a_wish_that_makes_no_sense(made: Path, figures: dict[str, Any], words: str) -> None:
    """It is refused before anything is computed."""
    with pytest.raises(dk.DeviceKitError, match=words):
        wish(**figures)


def test_a_prompt_that_is_too_long(editor: Any, picture: Image.Image) -> None:
    """The published pipeline would cut it off."""
    with pytest.raises(dk.DeviceKitError, match="it has 129 tokens, and the model reads 128"):
        editor.edit(picture, wish("a" * 127))
    assert editor.edit(picture, wish("a" * 126, steps=1)).seconds > 0


def test_a_scheduler_that_cannot_begin_in_the_middle(made: Path) -> None:
    """It would leave the picture out, so the model is refused."""
    from diffusers import UniPCMultistepScheduler

    from image_editing.editor import Editor
    from image_editing.tiny import make_pipeline

    pipe = make_pipeline()
    pipe.scheduler = UniPCMultistepScheduler()
    with pytest.raises(dk.DeviceKitError, match="scheduler is a UniPCMultistepScheduler"):
        Editor(dk.DeviceManager("cpu"), pipe)


def test_the_commands_errors_are_words(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and what, why and a try on stderr; nothing is written."""
    from image_editing.edit import main

    cut = tmp_path / "model"
    shutil.copytree(made / "model", cut)
    (cut / "model_index.json").write_text("{}")
    (tmp_path / "noise.safetensors").write_bytes(b"no weights")
    out = tmp_path / "out.png"
    good = {"--model": str(made / "model"), "--image": str(made / "in.png"), "--prompt": PROMPT, "--out": str(out)}
    for change, words in (
        ({"--model": str(tmp_path)}, "holds no pipeline"),
        ({"--model": str(cut)}, "cannot be loaded"),
        ({"--image": str(tmp_path / "gone.png")}, "There is no file"),
        ({"--prompt": ""}, "There is no prompt"),
        ({"--out": str(tmp_path / "out.doc")}, "no name for a picture"),
        ({"--out": str(tmp_path / "gone" / "out.png")}, "There is no folder"),
        ({"--device": "cuad"}, "'cuad' is no device"),
        ({"--lora": str(tmp_path / "gone.safetensors")}, "gone.safetensors"),
        ({"--lora": str(tmp_path / "noise.safetensors")}, "noise.safetensors"),
        ({"--steps": "0"}, "steps is 0"),
    ):
        assert main([text for pair in {**good, **change}.items() for text in pair]) == 2
        said = capsys.readouterr()
        assert words in said.err, said.err
        assert (said.out, "Traceback" in said.err) == ("", False)
    assert not out.exists()


def test_a_device_that_is_not_there(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next one is taken, and the state says why."""
    from devicekit.testing import simulated_machine

    with simulated_machine():
        assert edit(made, "--device", "cuda", "--out", str(tmp_path / "out.png")) == 0
    said = capsys.readouterr().out
    assert "device: cpu" in said
    assert "'cuda' was asked for" in next(line for line in said.splitlines() if line.startswith("warning: "))


def test_what_cannot_be_told_is_unknown(made: Path) -> None:
    """Memory figures are never 0 for want of an answer."""
    from image_editing.state import in_words, state

    assert (in_words(None), in_words(3 << 19)) == ("unknown", "1.5 MiB")
    told = state(dk.DeviceManager("cpu"))
    assert list(told)[:4] == ["device", "numbers", "attention", "warning"]
    assert "not flash-attn" in told["attention"]
