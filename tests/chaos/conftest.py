"""Fixtures: the Asterisk root, as for tests/pbx."""

from tests.pbx.conftest import pbx_root

__all__ = ["pbx_root"]
