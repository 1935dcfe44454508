"""An entry ``"device": "cuda"`` of a dictionary.

A configuration is read by somebody else, so what was text stays text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from devicekit.codemod.facts.positions import edits, last_name, may_be_missing, says_device
from devicekit.codemod.finding import Finding
from devicekit.codemod.module import Module
from devicekit.codemod.rule import Leaves, Reports, Rule, rewrites

MESSAGE = "an entry of a dictionary is a CUDA device"


class DeviceEntry(Rule):
    """It is a device where its key says so, or where the whole is a ``device_map``."""

    name = "device-entry"
    visits = (ast.Dict,)
    hints = ("cuda",)
    examples = (
        rewrites(
            'settings = {"device": "cuda", "steps": 3}',
            'settings = {"device": str(dm.device), "steps": 3}',
            gives="settings['steps']",
        ),
        rewrites(
            "def load(device_map):\n    return device_map\n\n\nplaces = load(device_map={'': 'cuda:0'})",
            "def load(device_map):\n    return device_map\n\n\nplaces = load(device_map={'': str(dm.device)})",
            gives="list(places)",
        ),
        Leaves('names = {"cuda": "device"}\n', because="CUDA is the key"),
        Leaves('settings = {"device": "cpu"}\n', because="it names no CUDA"),
        Reports('settings = {"fabric": "cuda"}\n'),
        Reports('presets = {"second": {"device": "cuda:1"}}\n'),
        Reports('def f(kind):\n    return {kind: "cuda", **{}}\n'),
    )

    def check(self, node: ast.AST, module: Module) -> Iterator[Finding]:
        """Entries of dictionaries that are written out."""
        assert isinstance(node, ast.Dict)
        above = module.parent(node)
        is_map = (isinstance(above, ast.keyword) and above.arg == "device_map") or (
            isinstance(above, ast.Assign) and last_name(above.targets[0]) == "device_map"
        )
        for key, value in zip(node.keys, node.values, strict=True):
            found = edits(value, module)
            if not found:
                continue
            says = is_map or (isinstance(key, ast.Constant) and says_device(last_name(key)))
            if says and may_be_missing(found) and module.function(node) is None:
                message = (
                    f"{MESSAGE} by number; where there are fewer, asking for it raises, and here already on import"
                )
                yield self.review(value, module, message, f"{found[0].text}, where the entry is read")
            elif says:
                yield self.rewrite(value, module, MESSAGE, *found)
            else:
                message = 'an entry of a dictionary is "cuda", and whether that is a device is not said'
                yield self.review(value, module, message, f"{found[0].text}, where it is a device")
