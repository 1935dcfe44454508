"""``device="cuda"`` makes or loads on a CUDA device.

torch's functions and tensors' methods take a ``torch.device`` as well as its name. What another function does with the
name is unknown, so there it stays text. https://docs.pytorch.org/docs/stable/tensor_attributes.html#torch.device
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.devices import device
from devicekit.codemod.facts.positions import edits, says_device, takes_device
from devicekit.codemod.facts.ranks import is_number, looks_like_number
from devicekit.codemod.finding import Edit, Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

OTHERS = (
    "torch.load",
    "torch.device",
    "torch.Generator",
    "torch.autocast",
    "torch.amp.",
    "torch.cuda.",
    "torch.profiler.",
)
"""Whose arguments other rules know."""
OPTIONS = ("use_device", "pin_memory_device")
ELSEWHERE = (
    "faster_whisper",
    "ctranslate2",
    "xgboost",
    "lightgbm",
    "catboost",
    "jax",
    "tensorflow",
    "warp",
    "taichi",
    "cupy",
    "numba",
    "onnxruntime",
    "vllm",
    "llama_cpp",
    "tvm",
    "spacy",
    "thinc",
    "cudf",
    "cuml",
)
"""Packages with devices of their own, whose "cuda" is not torch's."""


class DeviceArgument(Rule):
    """The name of the device is all in such a call that is CUDA's."""

    name = "device-argument"
    visits = (ast.Call,)
    hints = ("cuda", "rank", "gpu", "device_id", "device=0")
    examples = (
        rewrites('x = torch.ones(2, device="cuda")', "x = torch.ones(2, device=dm.device)", gives="x.sum()"),
        rewrites(
            "use_cuda = False\nx = torch.ones(1).new_zeros(2, device='cuda' if use_cuda else 'cpu')",
            "use_cuda = False\nx = torch.ones(1).new_zeros(2, device=dm.device if use_cuda else 'cpu')",
            gives="x.sum()",
        ),
        rewrites(
            'rank = 0\nx = torch.ones(2, device=f"cuda:{rank}", dtype=torch.half)',
            "rank = 0\nx = torch.ones(2, device=dm.device_at(rank), dtype=torch.half)",
            gives="x.float().sum()",
        ),
        rewrites("x = torch.ones(2, device=0)", "x = torch.ones(2, device=dm.device_at(0))", gives="x.sum()"),
        rewrites(
            'settings = dict(device="cuda", steps=3)',
            "settings = dict(device=str(dm.device), steps=3)",
            gives="settings['steps']",
        ),
        rewrites(
            'def load(name, device_map):\n    return device_map\n\n\nplace = load("a", device_map="cuda:0")',
            'def load(name, device_map):\n    return device_map\n\n\nplace = load("a", device_map=str(dm.device))',
            gives="type(place).__name__",
        ),
        Leaves('import torch\n\nx = torch.ones(2, device="cpu")\n', because="it names no CUDA"),
        Leaves("def f(x, device):\n    return x.new_ones(2, device=device)\n", because="the device is handed in"),
        Leaves("def f(open_camera):\n    return open_camera(device=0)\n", because="whose device this is, is not known"),
        Leaves(
            "def f(load, name):\n    return load(name, device_map={'': 'cpu'}, fabric='cuda')\n", because="no device"
        ),
        Reports('import faster_whisper\n\nmodel = faster_whisper.WhisperModel("tiny", device="cuda")\n'),
        Reports('from xgboost import XGBClassifier as Trees\n\nmodel = Trees(device="cuda:1")\n'),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Keyword arguments that name the device."""
        assert isinstance(node, ast.Call)
        name = module.name(node.func) or ""
        if name.startswith(OTHERS) or name.rpartition(".")[2] == "add_argument":
            return
        for keyword in node.keywords:
            if not says_device(keyword.arg) or keyword.arg in OPTIONS:
                continue
            found = _edits(node, keyword, module)
            if found and name.startswith(tuple(f"{package}." for package in ELSEWHERE)):
                message = f"`{keyword.arg}=` names CUDA, in a package with devices of its own"
                yield self.review(node, module, message, "see which names it knows; dm.backend says what there is")
            elif found:
                yield self.rewrite(node, module, f"`{keyword.arg}=` names CUDA", *found)


def _edits(call: ast.Call, keyword: ast.keyword, module: Module) -> list[Edit]:
    value = keyword.value
    if inner := edits(value, module):
        return inner
    if keyword.arg != "device" or not takes_device(call, module):
        return []
    if isinstance(value, ast.Call) and module.name(value.func) == "torch.cuda.current_device":
        found = device(value, module)
        return [module.replace(value, found.as_device(module))] if found else []
    is_rank = isinstance(value, ast.Constant) or looks_like_number(value)
    if is_rank and is_number(value, module):
        return [module.replace(value, f"{module.manager}.device_at({module.code(value)})")]
    return []
