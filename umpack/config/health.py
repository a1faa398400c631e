"""The `health` tables: numbers of health for the whole site and for single trunks and packs."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeVar

from pydantic import Field

from umpack.config.fields import Duration, DurationOrNone, Table
from umpack.config.problems import Findings
from umpack.config.yaml_source import Path
from umpack.core.errors import ConfigError
from umpack.core.health_policy import HealthPolicy, PackPolicy


class PackHealth(Table):
    """What is a pack's own of health; all else belongs to its trunks."""

    panic_share: float | None = Field(
        None, ge=0, le=1, description="With less of a pack usable, suspects are welcome (0.5)."
    )


class TrunkHealth(Table):
    """When a trunk is suspected, ejected and trusted again; what is left out stays as it is for the
    whole site."""

    suspect_after: int | None = Field(None, ge=1, description="Blamed failures in a row (1).")
    failures_to_eject: int | None = Field(None, ge=1, description="Blamed failures in a row (3).")
    no_route_numbers: int | None = Field(
        None, ge=1, description="Different numbers in a row without a route blame the trunk (5)."
    )
    suspect_rest: Duration | None = Field(
        None, description="A suspect nobody needed so long gets one call (10s)."
    )
    eject_base: Duration | None = Field(
        None, description="An ejection lasts this × times in a row (30s)."
    )
    eject_cap: Duration | None = Field(None, description="But no longer than this (5m).")
    jitter: float | None = Field(
        None, ge=0, le=1, description="Ejections are longer by up to this share (0.1)."
    )
    calm_period: Duration | None = Field(
        None, description="So long without a fault takes one off the times in a row (5m)."
    )
    trial_calls: int | None = Field(None, ge=1, description="Calls at once while half-open (1).")
    slow_start: Duration | None = Field(
        None, description="Time in which capacity grows to the whole (30s)."
    )
    slow_start_share: float | None = Field(
        None, ge=0, le=1, description="Share of capacity it grows from (0.1)."
    )
    debounce_loss: DurationOrNone | None = Field(
        None,
        description="Red and blue alarm must stand so long, on top of what the board itself waits "
        "(0, as E1 boards wait 2.5s). For boards that do not.",
    )
    debounce_remote: DurationOrNone | None = Field(
        None, description="Yellow alarm, likewise (0; boards wait 500ms)."
    )
    alarm_settle: Duration | None = Field(
        None, description="A cleared alarm must stay clear this × alarms in a row (2s)."
    )
    alarm_settle_cap: Duration | None = Field(None, description="But no longer than this (1m).")
    alarm_unseen: Duration | None = Field(
        None, description="An alarm is no longer certain so long after the AMI link's loss (30s)."
    )
    hesitation_samples: int | None = Field(
        None, ge=1, description="Answers learned from before any attempt is called late (20)."
    )
    hesitation_floor: Duration | None = Field(
        None, description="No attempt is late before this (200ms)."
    )
    hesitation_factor: float | None = Field(
        None, gt=0, description="Late is older than this × the trunk's own 99th percentile (3)."
    )
    hesitation_ceiling: Duration | None = Field(
        None, description="A trunk that normally takes longer rings people; never late (1s)."
    )
    answer_limit: Duration | None = Field(None, description="No attempt rings longer (1m).")
    short_call: Duration | None = Field(
        None, description="A connected call shorter than this did nothing (2.5s)."
    )
    outlier_sample: int | None = Field(
        None, ge=1, description="Calls before a ratio is compared with the trunk's past (20)."
    )
    outlier_sigmas: float | None = Field(
        None, gt=0, description="Standard deviations from its own past (4.5)."
    )
    outlier_distance: float | None = Field(
        None, ge=0, le=1, description="And at least this far from it (0.3)."
    )
    channel_failures: int | None = Field(
        None, ge=1, description="Failures in a row before one channel rests (3)."
    )
    channel_rest: Duration | None = Field(
        None, description="A channel rests this × times in a row (1m)."
    )
    channel_rest_cap: Duration | None = Field(None, description="But no longer than this (10m).")


class Health(TrunkHealth, PackHealth):
    """The same for all trunks and packs of the site; what is left out stays as built in."""


P = TypeVar("P", HealthPolicy, PackPolicy)


def policy_from(table: Table, base: P, path: Path, findings: Findings) -> P:
    """`base` with what the table says; reports numbers that make no sense together."""
    names = (each.name for each in fields(base))
    said = {name: value for name in names if (value := getattr(table, name, None)) is not None}
    try:
        return replace(base, **said)
    except ConfigError as error:
        findings.error(path, str(error))
        return base


def misplaced(key: str, table: type[Table] | None) -> str:
    """Why a key of health does not belong into the table where it stands; empty if it is none."""
    if table is TrunkHealth and key in PackHealth.model_fields:
        return "belongs to packs and to the site, being a share of a pack's channels"
    if table is PackHealth and key in TrunkHealth.model_fields:
        own = ", ".join(PackHealth.model_fields)
        return (
            "belongs to trunks and to the site: a trunk has one health, whatever packs it is in;"
            f" a pack has {own}"
        )
    return ""
