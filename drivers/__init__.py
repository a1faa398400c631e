"""What talks to switches, boards and modems; imported by `umpack.daemon`, simulators and tests."""

OWNER = "umpack"
"""Sentinel: another distribution that brings a package `drivers` would overwrite this file."""
