"""What ties a code base to CUDA outside of Python: sources for its compiler, settings, requirements, shell scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from devicekit.codemod.finding import Finding, Kind

__all__ = ["TEXT_RULES", "TextRule"]


@dataclass(frozen=True, slots=True)
class TextRule:
    """A pattern of lines in files that are no Python."""

    name: str
    title: str
    """The title of its page."""
    files: re.Pattern[str]
    """Of the file's name."""
    lines: re.Pattern[str] | None
    """Of a line; None: the file itself is the place."""
    kind: Kind
    message: str
    suggestion: str
    found: tuple[str, ...] = ()
    """Lines that it finds: its examples."""
    left: tuple[str, ...] = ()
    """Lines that it does not."""

    def check(self, text: str, file: str) -> Iterator[Finding]:
        """The places of a file."""
        if self.lines is None:
            yield self._finding(file, 1, 1, "")
            return
        for number, line in enumerate(text.splitlines(), 1):
            match = self.lines.search(line)
            if match is not None and not COMMENT.match(line) and "devicekit: ignore" not in line:
                yield self._finding(file, number, match.start() + 1, line)

    def _finding(self, file: str, line: int, column: int, code: str) -> Finding:
        return Finding(
            file,
            line,
            column,
            self.name,
            self.kind,
            self.message,
            self.suggestion,
            span=(line, line),
            code=code.strip(),
        )


SETTINGS = re.compile(r"\.(?:ya?ml|json|toml|ini|cfg)$")
REQUIREMENTS = re.compile(r"^(?:requirements.*\.(?:txt|in)|environment.*\.ya?ml)$")
COMMENT = re.compile(r"\s*(?:#|//|::|[Rr][Ee][Mm]\s)")
SHELL = re.compile(r"\.(?:sh|bash|bat|ps1|slurm|sbatch)$")

TEXT_RULES = (
    TextRule(
        "cuda-source",
        "A source file for CUDA's compiler",
        re.compile(r"\.cuh?$"),
        None,
        Kind.CANNOT,
        "a source file for CUDA's compiler: only NVIDIA's, and through hipify AMD's, can build it",
        "keep a path in plain torch beside it, and choose it where the extension is not built",
    ),
    TextRule(
        "config-value",
        "A settings file that names CUDA",
        SETTINGS,
        re.compile(
            r"""(?:\b\w*device\w*["']?\s*[:=]\s*["']?cuda\b|(?<![\w.-])["']?(?:use_)?cuda["']?\s*[:=]\s*["']?true\b|\bnccl\b)""",
            re.IGNORECASE,
        ),
        Kind.REVIEW,
        "a setting that names CUDA or NCCL",
        '"auto", and resolve_device() where it is read; dm.distributed_backend; a true now means any accelerator',
        found=("device: cuda", '"device": "cuda:0",', "use_cuda: true", "cuda = true", "backend: nccl"),
        left=("device: cpu", "cuda_version: 12", "devices: 4", "name: barracuda", "cuda: false"),
    ),
    TextRule(
        "requirement",
        "A requirement that only some vendors' devices can use",
        REQUIREMENTS,
        re.compile(
            r"^\s*(?:-\s*)?(?:flash[-_]attn|xformers|triton|bitsandbytes|deepspeed|onnxruntime-gpu"
            r"|tensorrt[\w-]*|cupy[\w-]*|pycuda|pynvml|apex|transformer[-_]engine|nvidia-(?![\w-]*-cu\d)[\w-]+)\b"
        ),
        Kind.REVIEW,
        "a package that only some vendors' devices can use, most of these NVIDIA's only",
        "move it to a requirements file for those devices; one that torch's CUDA build has brought along can go",
        found=("flash-attn>=2", "  - cupy", "triton", "nvidia-dali==1.0"),
        left=("torch>=2.6", "# triton", "my-triton-tools", "nvidia-cublas-cu12==12.1"),
    ),
    TextRule(
        "cuda-build",
        "A part of torch's build for CUDA among the requirements",
        REQUIREMENTS,
        re.compile(r"^\s*(?:-\s*)?nvidia-[\w-]+-cu\d+\b"),
        Kind.REVIEW,
        "a part of torch's build for CUDA, which no other build needs",
        "pin torch only, and let its build bring its own; resolve a generated file again with the build for the device",
        found=("nvidia-cublas-cu12==12.1", "nvidia-nccl-cu11"),
        left=("nvidia-ml-py>=12", "# nvidia-cublas-cu12"),
    ),
    TextRule(
        "shell-device",
        "A shell script that chooses a CUDA device",
        SHELL,
        re.compile(r"CUDA_VISIBLE_DEVICES\s*=(?!\s*(?:['\"]?-1|['\"]{2}|\s|$))"),
        Kind.REVIEW,
        "a command that chooses CUDA devices",
        "leave it for NVIDIA's; other vendors have HIP_VISIBLE_DEVICES, ZE_AFFINITY_MASK, ASCEND_RT_VISIBLE_DEVICES; "
        "what asks devicekit takes DEVICEKIT_DEVICE",
        found=("CUDA_VISIBLE_DEVICES=0 python train.py", "export CUDA_VISIBLE_DEVICES='0,1'"),
        left=("nvcc --version", "CUDA_VISIBLE_DEVICES=-1 python x.py", "echo $CUDA_VISIBLE_DEVICES"),
    ),
    TextRule(
        "shell-option",
        "A shell script that asks a program for CUDA",
        SHELL,
        re.compile(r"--device[ =]['\"]?cuda"),
        Kind.REVIEW,
        "a command that asks for CUDA",
        "make the device a variable of the script; a program that asks devicekit takes auto",
        found=("python sample.py --device=cuda", "x.py --device cuda:1"),
        left=("python sample.py --device=cpu", "x --device $DEVICE"),
    ),
    TextRule(
        "shell-visible",
        "A shell script that reads which CUDA devices are visible",
        SHELL,
        re.compile(r"\$\{?CUDA_VISIBLE_DEVICES\b"),
        Kind.REVIEW,
        "a script that goes by the list of visible CUDA devices, which is empty elsewhere",
        "set the number of processes itself; torchrun counts devices with --nproc_per_node=gpu",
        found=("num_gpus=$(echo $CUDA_VISIBLE_DEVICES | wc -w)", "n=${CUDA_VISIBLE_DEVICES}"),
        left=("CUDA_VISIBLE_DEVICES=0 python x.py",),
    ),
    TextRule(
        "shell-no-device",
        "A shell script that hides the CUDA devices",
        SHELL,
        re.compile(r"CUDA_VISIBLE_DEVICES\s*=\s*(?:['\"]?-1|['\"]{2}|\s|$)"),
        Kind.REVIEW,
        "a command that hides the CUDA devices; other vendors' stay visible",
        "DEVICEKIT_DEVICE=cpu beside it, for what asks devicekit",
        found=("CUDA_VISIBLE_DEVICES=-1 python x.py", 'export CUDA_VISIBLE_DEVICES=""', "CUDA_VISIBLE_DEVICES= x"),
        left=("CUDA_VISIBLE_DEVICES=0 x",),
    ),
)
