"""Runs the contract suite on every PBX there is: the simulated one, and the lab's real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from importlib import import_module
from importlib.util import find_spec

import pytest

from tests.contract.pbx import ContractPbx
from tests.contract.simulated import SimulatedPbx

REAL = "tests.contract.real"
"""Has `RealPbx`, a ContractPbx without arguments; it may skip where no PBX can be had."""


def _real() -> ContractPbx:
    found: ContractPbx = import_module(REAL).RealPbx()
    return found


IMPLEMENTATIONS = [pytest.param(SimulatedPbx, id="simulated")]
if find_spec(REAL):
    IMPLEMENTATIONS.append(pytest.param(_real, id="real", marks=pytest.mark.pbx))


@pytest.fixture(params=IMPLEMENTATIONS)
async def pbx(request: pytest.FixtureRequest) -> AsyncIterator[ContractPbx]:
    make: Callable[[], ContractPbx] = request.param
    implementation = make()
    yield implementation
    await implementation.stop()
