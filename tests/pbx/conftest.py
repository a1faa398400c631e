"""Fixtures: the Asterisk root (once a run) and labs that are always taken down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.pbx.lab import Lab, LabConfig
from tests.pbx.root import PbxUnavailable, Root, ensure

StartLab = Callable[[LabConfig], Lab]


@pytest.fixture(scope="session")
def pbx_root() -> Root:
    """The Asterisk to test with; the first call may build it (a minute or two)."""
    try:
        return ensure(lambda line: print(line, flush=True))
    except PbxUnavailable as error:
        if os.environ.get("UMPACK_REQUIRE_PBX") == "1":
            raise
        pytest.skip(f"NO REAL PBX, its tests prove nothing here: {error}")


@pytest.fixture
def start_lab(pbx_root: Root) -> Iterator[StartLab]:
    """Start labs (each boots in about a second); all end with the test."""
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(Lab(pbx_root, config))
