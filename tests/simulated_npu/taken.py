"""Where another backend has taken PrivateUse1 there is no room for the simulated npu."""

from __future__ import annotations

import pytest
import torch

from devicekit.testing.simulated_npu import install

torch.utils.rename_privateuse1_backend("other")


def check_the_other_backend_is_named() -> None:
    """install says who was here first, and leaves torch as it was."""
    made = torch.Generator
    with pytest.raises(RuntimeError, match="PrivateUse1 is taken already, by 'other'"):
        install()
    assert not hasattr(torch, "npu")
    assert torch.Generator is made
    assert torch.device("other").type == "other"


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
for check in CHECKS:
    check()
print(len(CHECKS), "checks")
