"""The configuration file: YAML to a checked, frozen `Configuration`, or every problem at once."""

from umpack.config.configuration import Configuration, Control, Journal, Log, Pbx, describe
from umpack.config.problems import ConfigProblems, Problem, Severity
from umpack.config.reading import load, parse, schema
from umpack.config.values import Address

__all__ = [
    "Address",
    "ConfigProblems",
    "Configuration",
    "Control",
    "Journal",
    "Log",
    "Pbx",
    "Problem",
    "Severity",
    "describe",
    "load",
    "parse",
    "schema",
]
