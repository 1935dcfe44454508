"""Code that migrate has rewritten gives the same on an npu as on the CPU: every example of a rule that can be run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from devicekit.testing.simulated_npu import install

install(memory="64MiB", soc="Ascend910B3")

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.codemod.examples import alike, runnable, value_of  # noqa: E402

NOT_HERE = {
    "Invalid device ID": "there is one device",
    "float64 is not supported": "the chip has no float64",
    "PrivateUse1HooksInterface": "the simulated device pins no memory",
}
"""What the simulated device, or the chip that it stands for, cannot do."""
ABOUT_LIBRARIES = {"process-group"}
"""Examples that give the name of the collective library, of which this torch has none for an npu."""


def value_on(device: str, code: str, expression: str) -> object:
    """What the expression is with this device chosen by the operator."""
    os.environ["DEVICEKIT_DEVICE"] = device
    return value_of(code, expression)


def without_name(value: object) -> object:
    """Names of devices are meant to differ."""
    if isinstance(value, (tuple, list)):
        return [without_name(part) for part in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.replace("npu", "cpu") if isinstance(value, str) else value


checks, odd = 0, []
for name, example in runnable():
    on_cpu = value_on("cpu", example.after, example.gives)
    try:
        on_npu = value_on("npu", example.after, example.gives)
    except Exception as exc:
        if not any(said in str(exc) for said in NOT_HERE):
            odd.append(f"{name}: {type(exc).__name__}: {str(exc)[:200]}")
        continue
    if alike(without_name(on_cpu), without_name(on_npu)) or name.rpartition("-")[0] in ABOUT_LIBRARIES:
        checks += 1
    else:
        odd.append(f"{name}: {on_cpu!r} on the CPU, {on_npu!r} on the npu")
assert not odd, "\n" + "\n".join(odd)
assert checks > 100
print(f"{checks} checks")
