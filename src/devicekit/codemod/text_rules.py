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
            if match is not None and "devicekit: ignore" not in line:
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
        "A requirement that only NVIDIA's devices can use",
        re.compile(r"^(?:requirements.*\.(?:txt|in)|environment.*\.ya?ml)$"),
        re.compile(
            r"^\s*(?:-\s*)?(?:nvidia-[\w-]+|flash[-_]attn|xformers|triton|bitsandbytes|deepspeed|onnxruntime-gpu"
            r"|tensorrt[\w-]*|cupy[\w-]*|pycuda|pynvml|apex|transformer[-_]engine)\b"
        ),
        Kind.REVIEW,
        "a package for NVIDIA's devices",
        "move it to a requirements file for CUDA, and import it only where it is needed",
        found=("nvidia-cublas-cu12==12.1", "flash-attn>=2", "  - cupy", "triton"),
        left=("torch>=2.6", "# triton", "my-triton-tools"),
    ),
    TextRule(
        "shell-device",
        "A shell script that chooses a CUDA device",
        SHELL,
        re.compile(r"CUDA_VISIBLE_DEVICES|--device[ =]['\"]?cuda"),
        Kind.REVIEW,
        "a command that chooses a CUDA device",
        "DEVICEKIT_DEVICE=auto (or KRONOS_DEVICE), or the program's --device auto",
        found=("CUDA_VISIBLE_DEVICES=0 python train.py", "python sample.py --device=cuda"),
        left=("python sample.py --device=cpu", "nvcc --version"),
    ),
)
