"""The `health` table: numbers of trunk health, for the whole site and for single trunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from pydantic import Field

from umpack.config.fields import Duration, Table
from umpack.config.problems import Findings
from umpack.config.yaml_source import Path
from umpack.core.errors import ConfigError
from umpack.core.health_policy import HealthPolicy


class Health(Table):
    """When a trunk is suspected, ejected and trusted again; what is left out stays as built in."""

    suspect_after: int | None = Field(None, ge=1, description="Blamed failures in a row (1).")
    failures_to_eject: int | None = Field(None, ge=1, description="Blamed failures in a row (3).")
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
    debounce_loss: Duration | None = Field(
        None, description="Red and blue alarm, where no board has waited already (2.5s)."
    )
    debounce_remote: Duration | None = Field(None, description="Yellow alarm, likewise (500ms).")
    alarm_settle: Duration | None = Field(
        None, description="A cleared alarm must stay clear this × alarms in a row (2s)."
    )
    alarm_settle_cap: Duration | None = Field(None, description="But no longer than this (1m).")
    alarm_unseen: Duration | None = Field(
        None, description="An alarm is no longer certain so long after the AMI link's loss (30s)."
    )
    panic_share: float | None = Field(
        None, ge=0, le=1, description="With less of a pack usable, suspects are welcome (0.5)."
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


_KEYS = tuple(each.name for each in fields(HealthPolicy))


def policy_from(
    table: Health | None, base: HealthPolicy, path: Path, findings: Findings
) -> HealthPolicy:
    """`base` with what the table says; reports numbers that make no sense together."""
    given = given_in(table)
    try:
        return replace(base, **given) if given else base  # type: ignore[arg-type]  # by name
    except ConfigError as error:
        findings.error(path, str(error))
        return base


def given_in(table: Health | None) -> Mapping[str, float]:
    """The numbers a table has."""
    if table is None:
        return {}
    return {key: value for key in _KEYS if (value := getattr(table, key)) is not None}
