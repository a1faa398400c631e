"""What talks to switches, boards and modems. Import only from `umpack.daemon`, tests and simulators."""

OWNER = "umpack"
"""Sentinel: another distribution that brings a package `drivers` would overwrite this file."""
