"""devicekit's own suite, run against this backend, and what is special about it."""

from __future__ import annotations

import pytest
from acme_device import AcmeBackend

from devicekit.host import Host
from devicekit.testing import BackendConformance


class TestAcme(BackendConformance):
    """Every promise that a backend makes."""

    @pytest.fixture
    def backend(self) -> AcmeBackend:
        """On this machine, without anybody's mask."""
        return AcmeBackend(Host(env={}))


@pytest.mark.parametrize("env", [{}, {"ACME_VISIBLE_DEVICES": "A-0001"}])
def test_the_card_is_found(env: dict[str, str]) -> None:
    """Without a mask, and with one that names it."""
    answer = AcmeBackend(Host(env=env)).probe()
    assert [device.name for device in answer.devices if device.usable] == ["Acme One"]


def test_a_mask_that_hides_all_says_so() -> None:
    """No is an answer with a reason and a way out."""
    answer = AcmeBackend(Host(env={"ACME_VISIBLE_DEVICES": "A-0002"})).probe()
    assert not answer.usable
    assert "ACME_VISIBLE_DEVICES" in answer.reason
    assert "unset" in answer.fix


def test_without_the_vendors_package_it_is_absent() -> None:
    """Nobody can have meant a device whose software is not there."""

    class Without(Host):
        def installed(self, name: str) -> bool:
            """Nothing is."""
            return False

    answer = AcmeBackend(Without(env={})).probe()
    assert not answer.usable
    assert not answer.built
