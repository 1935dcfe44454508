"""Public programs that want CUDA: how each is made small, run, and put on the CPU by hand, to compare with.

The clones are not changed, and no line of them is here but what an edit looks for.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent
Edit = tuple[str, str, str]
"""A file, a text in it, and what takes its place, wherever it stands."""
Outcome = Mapping[str, object]
"""What a run came to, by what it is called in the table."""


@dataclass(frozen=True)
class Step:
    """Commands that run at the same time, in a folder of the clone; {port} is a free one."""

    commands: Sequence[Sequence[str]]
    folder: str = "."


@dataclass(frozen=True)
class Program:
    """One program, and how to run it as a user does."""

    name: str
    clone: str
    needs: Sequence[str]
    """Modules that it imports."""
    steps: Sequence[Step]
    outcome: Callable[[Path, str], Outcome]
    """From the folder and what was printed; raises OSError or ValueError where something is missing."""
    make: Callable[[Path, Mapping[str, str]], None] = lambda _folder, _env: None
    """Makes weights and data in a copy."""
    alike: Sequence[Edit] = ()
    """Makes every copy small, and its numbers the same in two runs."""
    by_hand: Sequence[Edit] = ()
    """Puts the program on the CPU, by replacing text: the reference."""
    by_hand_options: Sequence[str] = ()
    """The same, by the program's own options."""
    on_cuda: Sequence[Edit] = ()
    """Puts it on the CPU and keeps what it does on CUDA only; empty: that is nothing else."""
    gpus: int = 1
    """How many of them its processes on one machine use."""


def python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


def torchrun(*arguments: str) -> tuple[str, ...]:
    return python("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port={port}", *arguments)


# -- what is compared --------------------------------------------------------------------------------
def numbers(text: str, pattern: str) -> tuple[str, ...]:
    """What the pattern's group matched, in order.

    Raises:
        ValueError: nothing did, or it is no number; two that went wrong would be equal.
    """
    found = re.findall(pattern, text)
    if not found or any("nan" in each for each in found):
        raise ValueError(f"{pattern!r} was not printed, or as NaN")
    return tuple(found)


def picture(file: Path) -> str:
    """A picture, told by the SHA-256 of the file.

    Raises:
        ValueError: it has one colour, as what went wrong has.
    """
    from PIL import Image

    with Image.open(file) as image:
        if all(low == high for low, high in image.convert("RGB").getextrema()):
            raise ValueError(f"{file.name} is empty")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights(file: Path, key: str) -> str:
    """A checkpoint's tensors, told by the SHA-256 of their bytes."""
    import torch

    tensors = torch.load(file, map_location="cpu", weights_only=True)[key]
    told = hashlib.sha256()
    for name, tensor in tensors.items():
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return told.hexdigest()


# -- HiDream-E1 --------------------------------------------------------------------------------------
def _tiny_models(kind: str) -> Callable[[Path, Mapping[str, str]], None]:
    def make(folder: Path, env: Mapping[str, str]) -> None:
        _run(python(str(HERE / "_tiny_models.py"), kind), folder, env)

    return make


def _run(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")


EDITOR = "inference_e1_1.py"
HIDREAM = Program(
    "HiDream-E1 inference_e1_1.py",
    "HiDream-E1",
    ("diffusers", "transformers", "safetensors", "PIL", "accelerate"),
    [Step([python(EDITOR)])],
    lambda folder, _: {"picture": picture(folder / "results/test_1.jpg")},
    _tiny_models("hidream"),
    alike=[(EDITOR, "image_size = 1024", "image_size = 128"), (EDITOR, "steps=28", "steps=2")],
    by_hand=[
        (EDITOR, "{torch.cuda.memory_summary(device='cuda', abbreviated=True)}", ""),
        (EDITOR, '"cuda"', '"cpu"'),
    ],
)


# -- nanoGPT -----------------------------------------------------------------------------------------
def _characters(folder: Path, env: Mapping[str, str]) -> None:
    """Have the program's own script read a text that is there instead of one to be downloaded."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "data/shakespeare_char/input.txt").write_text(text, encoding="utf-8")
    _run(python("data/shakespeare_char/prepare.py"), folder, env)


def _trained(folder: Path, printed: str) -> Outcome:
    losses = numbers(printed, r"(?:loss|train loss|val loss) (\d+\.\d+)")
    return {f"{len(losses)} losses": losses, "weights": weights(folder / "out/ckpt.pt", "model")}


def _trained_and_sampled(folder: Path, printed: str) -> Outcome:
    return {**_trained(folder, printed), "text": printed.partition("Loading meta from")[2]}


NANOGPT_SIZE = (
    "--dataset=shakespeare_char",
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=32",
    "--block_size=32",
    "--batch_size=4",
    "--gradient_accumulation_steps=2",
    "--max_iters=20",
    "--eval_interval=10",
    "--eval_iters=4",
    "--compile=False",
)
NANOGPT = Program(
    "nanoGPT train.py, sample.py",
    "nanoGPT",
    ("numpy", "requests", "tiktoken"),
    [
        Step([python("train.py", *NANOGPT_SIZE)]),
        Step([python("sample.py", "--num_samples=1", "--max_new_tokens=40")]),
    ],
    _trained_and_sampled,
    _characters,
    by_hand_options=("--device=cpu",),
)
NANOGPT_DDP = Program(
    "nanoGPT train.py, torchrun, 2 processes",
    "nanoGPT",
    ("numpy", "requests"),
    [Step([torchrun("train.py", *NANOGPT_SIZE)])],
    _trained,
    _characters,
    by_hand=[
        ("train.py", "'nccl' #", "'gloo' #"),
        ("train.py", "f'cuda:{ddp_local_rank}'", "'cpu'"),
        ("train.py", "torch.cuda.set_device(device)", "pass"),
        ("train.py", ", device_ids=[ddp_local_rank]", ""),
    ],
)


# -- minGPT ------------------------------------------------------------------------------------------
def _added(_: Path, printed: str) -> Outcome:
    losses = numbers(printed, r"train loss (\d+\.\d+)")
    scores = numbers(printed, r"final score: (\d+/\d+)")
    return {f"{len(losses)} losses": losses, "scores": scores}


MINGPT = Program(
    "minGPT projects/adder",
    "minGPT",
    ("numpy",),
    [Step([python("projects/adder/adder.py", "--trainer.max_iters=101", "--trainer.num_workers=0")])],
    _added,
)

# -- Kronos ------------------------------------------------------------------------------------------
FORECAST = "examples/prediction_wo_vol_example.py"
KRONOS = Program(
    "Kronos prediction_wo_vol_example.py",
    "Kronos",
    ("pandas", "matplotlib", "einops", "huggingface_hub", "safetensors", "tqdm"),
    [Step([python("prediction_wo_vol_example.py")], "examples")],
    lambda _, printed: {"forecast": numbers(printed, r"(?m)^\d{4}-[^,]+(?:,-?\d[^,]*){6}$")},
    _tiny_models("kronos"),
    alike=[
        (FORECAST, "pred_len = 120", "pred_len = 5"),
        (FORECAST, "print(pred_df.head())", "print(pred_df.to_csv())"),
        (FORECAST, "# 4. Make Prediction", "__import__('torch').manual_seed(1)"),
    ],
    by_hand=[(FORECAST, '"cuda:0"', '"cpu"')],
)


# -- pytorch/examples --------------------------------------------------------------------------------
def _losses(_: Path, printed: str) -> Outcome:
    """On the CPU each process trains and saves for itself, under one name: there are no weights to compare."""
    losses = numbers(printed, r"Loss (\S+)")
    return {f"{len(losses)} losses": losses}


def _classified(folder: Path, printed: str) -> Outcome:
    return {**_losses(folder, printed), "weights": weights(folder / "imagenet/checkpoint.pth.tar", "state_dict")}


IMAGENET = "imagenet/main.py"
IMAGENET_OPTIONS = ("--dummy", "--batch-size=4", "--workers=0", "--epochs=1", "--seed=1", "--print-freq=1")
IMAGENET_NODES = ("--multiprocessing-distributed", "--world-size=2")
FEW_PICTURES = [(IMAGENET, "FakeData(1281167,", "FakeData(12,"), (IMAGENET, "FakeData(50000,", "FakeData(8,")]
# On CUDA the program wraps its model, which it leaves out elsewhere.
_WRAPPED = (
    (IMAGENET, "    if not use_accel:\n        print('using CPU, this will be slow')\n    elif args", "    if args"),
    (IMAGENET, "device.type == 'cuda':", "True:"),
    (IMAGENET, "torch.cuda.set_device(args.gpu)", "pass"),
    (IMAGENET, "torch.accelerator.set_device_index(args.gpu)", "pass"),
    (IMAGENET, "model.cuda(device)", "pass"),
    (IMAGENET, ", device_ids=[args.gpu]", ""),
    (IMAGENET, "torch.nn.DataParallel(model).cuda()", "torch.nn.DataParallel(model)"),
)
IMAGENET_ALONE = Program(
    "examples imagenet --dummy",
    "examples",
    ("torchvision",),
    [Step([python("main.py", *IMAGENET_OPTIONS)], "imagenet")],
    _classified,
    alike=FEW_PICTURES,
    on_cuda=_WRAPPED,
)
IMAGENET_TOGETHER = Program(
    "examples imagenet --multiprocessing-distributed, 2 processes",
    "examples",
    ("torchvision",),
    [
        Step(
            [
                python(
                    "main.py", *IMAGENET_OPTIONS, *IMAGENET_NODES, "--dist-url=tcp://127.0.0.1:{port}", f"--rank={rank}"
                )
                for rank in range(2)
            ],
            "imagenet",
        )
    ],
    _losses,
    # --seed is for the process that spawns the others
    alike=[*FEW_PICTURES, (IMAGENET, "    args.gpu = gpu\n", "    args.gpu = gpu\n    torch.manual_seed(1)\n")],
    by_hand_options=("--dist-backend=gloo",),
    on_cuda=_WRAPPED,
)
TUTORIAL = "distributed/ddp-tutorial-series/multigpu_torchrun.py"
DDP_TUTORIAL = Program(
    "examples ddp-tutorial-series, torchrun, 2 processes",
    "examples",
    (),
    [Step([torchrun("multigpu_torchrun.py", "2", "1")], "distributed/ddp-tutorial-series")],
    lambda folder, _: {"weights": weights((folder / TUTORIAL).with_name("snapshot.pt"), "MODEL_STATE")},
    alike=[(TUTORIAL, "    ddp_setup()\n", "    ddp_setup()\n    torch.manual_seed(1)\n")],
    by_hand=[
        (TUTORIAL, 'torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))', "pass"),
        (TUTORIAL, '"nccl"', '"gloo"'),
        (TUTORIAL, ".to(self.gpu_id)", ""),
        (TUTORIAL, ", device_ids=[self.gpu_id]", ""),
    ],
    gpus=2,
)

ADVERSARIES = Program(
    "examples dcgan --dataset fake",
    "examples",
    ("torchvision",),
    [
        Step(
            [python("main.py", "--dataset=fake", "--accel", "--dry-run", "--niter=1", "--manualSeed=1", "--workers=0")],
            "dcgan",
        )
    ],
    lambda folder, printed: {
        "losses": numbers(printed, r"Loss_[DG]: (\S+)"),
        "picture": picture(folder / "dcgan/fake_samples_epoch_000.png"),
    },
    alike=[("dcgan/main.py", "image_size=(3, opt.imageSize", "size=8, image_size=(3, opt.imageSize")],
    by_hand=[("dcgan/main.py", "if opt.accel and torch.accelerator.is_available():", "if False:")],
)

# -- as they would be ported, to the last bit --------------------------------------------------------
# nanoGPT leaves autocast and the fused optimizer out when its device is the CPU. A program that runs unchanged does
# what it does on CUDA, so the reference does so as well.
_LIKE_CUDA = (
    ("train.py", "nullcontext() if device_type == 'cpu' else ", ""),
    ("model.py", "and device_type == 'cuda'", ""),
)
_IN_BFLOAT16 = "--dtype=bfloat16"
NANOGPT_UNCHANGED = replace(
    NANOGPT,
    steps=[
        Step([python("train.py", *NANOGPT_SIZE, _IN_BFLOAT16)]),
        Step([python("sample.py", "--num_samples=1", "--max_new_tokens=40", _IN_BFLOAT16)]),
    ],
    by_hand=[*_LIKE_CUDA, ("sample.py", "nullcontext() if device_type == 'cpu' else ", "")],
)
NANOGPT_DDP_UNCHANGED = replace(
    NANOGPT_DDP,
    steps=[Step([torchrun("train.py", *NANOGPT_SIZE, _IN_BFLOAT16)])],
    gpus=2,
    by_hand=[*NANOGPT_DDP.by_hand, *_LIKE_CUDA],
)

PROGRAMS = (HIDREAM, NANOGPT, NANOGPT_DDP, MINGPT, KRONOS, IMAGENET_ALONE, IMAGENET_TOGETHER, DDP_TUTORIAL)

UNCHANGED = (
    HIDREAM,
    NANOGPT_UNCHANGED,
    NANOGPT_DDP_UNCHANGED,
    KRONOS,
    IMAGENET_ALONE,
    IMAGENET_TOGETHER,
    DDP_TUTORIAL,
    ADVERSARIES,
)
