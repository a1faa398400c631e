"""The version of the installed distribution; the one place it is written is pyproject.toml."""

from importlib.metadata import version

VERSION = version("umpack")
