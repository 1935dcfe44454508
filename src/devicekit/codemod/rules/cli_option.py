"""A command-line option that is ``"cuda"`` by default, or takes CUDA and a few others only.

argparse does not hold a default against ``choices``; click does.
https://docs.python.org/3/library/argparse.html#choices
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.devices import text_of_cuda
from devicekit.codemod.facts.positions import edits, may_be_missing, parameter_of, says_device
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rewrites, Rule, rewrites

METHODS = ("add_argument", "add_option")
FUNCTIONS = (
    "click.option",
    "click.argument",
    "typer.Option",
    "typer.Argument",
    "asyncclick.option",
    "rich_click.option",
)
MESSAGE = "an option's default is a CUDA device"


class CliOption(Rule):
    """The default becomes the device there is; the words that a user may say are the program's to choose."""

    name = "cli-option"
    visits = (ast.Call,)
    hints = ("cuda",)
    examples = (
        Rewrites(
            "import argparse\n\nparser = argparse.ArgumentParser()\n"
            'parser.add_argument("--device", type=str, default="cuda")\n',
            "import argparse\nimport devicekit\n\ndm = devicekit.DeviceManager.current()\n\n"
            "parser = argparse.ArgumentParser()\n"
            'parser.add_argument("--device", type=str, default=str(dm.device))\n',
            gives="type(parser.parse_args([]).device)",
        ),
        rewrites(
            'def options(parser):\n    parser.add_argument("-d", "--run-device", default="cuda:0")',
            'def options(parser):\n    parser.add_argument("-d", "--run-device", default=str(dm.device))',
        ),
        rewrites(
            "def f(parser):\n    parser.add_argument('-g', dest='device', action='store_const', const='cuda')",
            "def f(parser):\n    parser.add_argument('-g', dest='device', action='store_const', const=str(dm.device))",
        ),
        Leaves('def f(parser):\n    parser.add_argument("--device", default="cpu")\n', because="it names no CUDA"),
        Leaves('def f(menu):\n    menu.add_entry("--device", default="cuda")\n', because="this is no option"),
        Reports('def f(parser):\n    parser.add_argument("--backend", default="cuda")\n'),
        Reports('def f(parser):\n    parser.add_argument("--device", default="cuda:1")\n'),
        Reports('def f(parser):\n    parser.add_argument("--device", default="cpu", choices=["cuda", "cpu"])\n'),
        Reports(
            'import click\n\n\n@click.option("--device", default="cuda", type=click.Choice(["cpu", "cuda"]))\n'
            "def main(device):\n    pass\n"
        ),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Declarations of options."""
        assert isinstance(node, ast.Call)
        name = module.name(node.func)
        is_method = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
        if not is_method and name not in FUNCTIONS:
            return
        given = {k.arg: k.value for k in node.keywords if k.arg}
        if "typer" in (name or "") and node.args:
            given.setdefault("default", node.args[0])
        inner = [e for key in ("default", "const") if key in given for e in edits(given[key], module)]
        kind = given.get("type")
        refuses = isinstance(kind, ast.Call) and _names_cuda(kind, module)
        if ("choices" in given and _names_cuda(given["choices"], module)) or refuses:
            message = "an option takes CUDA and some others only, and refuses the rest"
            yield self.review(node, module, message, "add the words for the other devices that it is to take")
        if not inner or refuses:
            return
        if _says_device(node, module) and may_be_missing(inner):
            message = f"{MESSAGE} by number; where there are fewer, asking for it raises, even if another one is given"
            yield self.review(node, module, message, "None as the default, and the device after parsing")
        elif _says_device(node, module):
            yield self.rewrite(node, module, MESSAGE, *inner)
        else:
            message = 'an option is "cuda" by default, and whether that is a device is not said'
            yield self.review(node, module, message, f"{inner[0].text}, where it is a device")


def _names_cuda(node: ast.AST, module: Module) -> bool:
    return any(text_of_cuda(part, module) for part in ast.walk(node))


def _says_device(call: ast.Call, module: Module) -> bool:
    """``--device``; a parameter's own name with typer."""
    given = [k.value for k in call.keywords if k.arg == "dest"]
    words = [part.value for part in (given or call.args) if isinstance(part, ast.Constant)]
    above = module.parent(call)
    parameter = parameter_of(above, call) if isinstance(above, ast.arguments) else None
    return any(isinstance(w, str) and says_device(w) for w in [*words, parameter.arg if parameter else ""])
