"""Fixtures: the Asterisk root, as for tests/pbx; a lab with four UM servers; what ends with a test.

Every test has its own lab in a directory of its own, ports that were free when it began, and ends
all it has started, whatever becomes of it; `lab.sweep` ends what a killed test run has left. Tests
that storm a real PBX and look at times are of one xdist group, pbx-storms, with those of tests/pbx:
no two of them run beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.pbx.beside import patient, port_of
from tests.pbx.conftest import pbx_root
from tests.pbx.lab import Lab
from tests.pbx.root import Root
from tests.pbx.storm import SERVERS, UmServer, um_config

__all__ = ["pbx_root"]


@pytest.fixture
def lab(pbx_root: Root) -> Iterator[Lab]:
    with patient(Lab(pbx_root, um_config())) as lab:
        yield lab
    assert not lab.running
    assert not lab.directory.exists()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def servers(lab: Lab, stack: ExitStack) -> list[UmServer]:
    return [stack.enter_context(UmServer(port_of(lab, name))) for name in SERVERS]
