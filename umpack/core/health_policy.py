"""The numbers of health, of a trunk and of a pack: units, defaults, and what these rest on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from umpack.core.errors import ConfigError
from umpack.core.health_states import AlarmKind

_AT_LEAST_ONE = (
    "failures_to_eject suspect_after trial_calls hesitation_samples outlier_sample "
    "channel_failures no_route_numbers"
)
_ABOVE_ZERO = (
    "eject_base eject_cap calm_period suspect_rest slow_start answer_limit channel_rest "
    "channel_rest_cap hesitation_factor outlier_sigmas"
)
_NOT_BELOW_ZERO = (
    "debounce_loss debounce_remote alarm_settle alarm_settle_cap alarm_unseen hesitation_floor "
    "hesitation_ceiling short_call"
)
_SHARES = "jitter slow_start_share outlier_distance"


@dataclass(frozen=True, slots=True)
class PackPolicy:
    """What is a pack's own of health: a share is 0 to 1. `ConfigError` where it is not."""

    panic_share: float = 0.5
    """With less of a pack usable than this, suspects are as good as any (Envoy's panic)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.panic_share <= 1.0:
            raise ConfigError("panic_share must be at least 0 and at most 1")

    def panics(self, usable: int, channels: int) -> bool:
        """Whether so few `usable` ones of a pack's `channels` call for the doubtful ones too."""
        return usable < self.panic_share * channels


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """Times are seconds, shares are 0 to 1. `ConfigError` where the numbers make no sense."""

    suspect_after: int = 1
    """Blamed failures in a row."""
    failures_to_eject: int = 3
    """Blamed failures in a row; HAProxy's `fall`. One is noise: a call may meet any fault once."""
    no_route_numbers: int = 5
    """Different numbers in a row that had no route (Q.850 2, 3) before the trunk is blamed for more
    of them. Fewer may be wrong numbers."""
    suspect_rest: float = 10.0
    """A suspect nobody needed for so long gets one call, or it would stay suspect for ever."""

    eject_base: float = 30.0
    """Ejection lasts `eject_base` × times in a row, up to `eject_cap` (Envoy's outlier
    detection)."""
    eject_cap: float = 300.0
    jitter: float = 0.1
    """Ejections are longer by up to this share, so that trunks that died together are not tried
    together."""
    calm_period: float = 300.0
    """So long without a fault takes one off the times in a row, and off the alarms in a row."""
    trial_calls: int = 1
    """Calls at once while half-open."""
    slow_start: float = 30.0
    """Time in which capacity grows to the whole (HAProxy `slowstart`)."""
    slow_start_share: float = 0.1
    """Share of capacity it grows from; at least one channel (Envoy's minimum weight)."""

    debounce_loss: float = 0.0
    """Red and blue alarm, on top of what the board waits itself. The common E1 boards do (wct4xxp:
    2.5 s, and 0.5 s for yellow), so that what they tell is believed at once; for those that do not
    (TDM over Ethernet, some S0 boards) their 2.5 s is a good choice. Until an alarm is believed
    the trunk is used in reserve only."""
    debounce_remote: float = 0.0
    """Yellow alarm, likewise."""
    alarm_settle: float = 2.0
    """A cleared alarm must stay clear for this × alarms in a row, up to `alarm_settle_cap`."""
    alarm_settle_cap: float = 60.0
    alarm_unseen: float = 30.0
    """So long after the link to its PBX was lost an alarm is certain; then its trunk is a suspect.
    Longer than a restart of Asterisk takes."""

    hesitation_samples: int = 20
    """Answers learned from before any attempt is called late."""
    hesitation_floor: float = 0.2
    """No attempt is late before this."""
    hesitation_factor: float = 3.0
    """Late is an attempt older than this × the trunk's own 99th percentile."""
    hesitation_ceiling: float = 1.0
    """A trunk whose 99th percentile is above this rings people, and lateness says nothing."""
    answer_limit: float = 60.0
    """No attempt rings longer. An older one was answered and the hint of it lost. Set it above the
    longest `answer_within` of the trunk's packs."""

    short_call: float = 2.5
    """A connected call shorter than this did nothing: a fax machine's tone alone lasts 2.6 s (T.30
    CED), and no announcement is heard in less."""
    outlier_sample: int = 20
    """Calls in the recent window before its ratio is compared."""
    outlier_sigmas: float = 4.5
    """Standard deviations from the trunk's own past; simulated, chance passes that once in some
    300,000 calls."""
    outlier_distance: float = 0.3
    """And at least this far from it, for a difference may be certain and yet harmless."""

    channel_failures: int = 3
    """Failures in a row blamed on one channel before it is rested."""
    channel_rest: float = 60.0
    """A channel rests this × times in a row, up to `channel_rest_cap`; two RESTART attempts of
    Q.931 T316 (2 min) fit into the second."""
    channel_rest_cap: float = 600.0

    def __post_init__(self) -> None:
        for names, low, strict in (
            (_AT_LEAST_ONE, 1.0, False),
            (_ABOVE_ZERO, 0.0, True),
            (_NOT_BELOW_ZERO, 0.0, False),
            (_SHARES, 0.0, False),
        ):
            for name in names.split():
                value = getattr(self, name)
                if not math.isfinite(value) or value < low or (strict and value == low):
                    raise ConfigError(f"{name} must be {'above' if strict else 'at least'} {low:g}")
        for name in _SHARES.split():
            if getattr(self, name) > 1.0:
                raise ConfigError(f"{name} must be at most 1")
        for name, cap in (("eject_base", "eject_cap"), ("channel_rest", "channel_rest_cap")):
            low, high = getattr(self, name), getattr(self, cap)
            if high < low:
                raise ConfigError(f"{cap} ({high:g} s) must not be below {name} ({low:g} s)")

    def ejection(self, times: int, dice: float) -> float:
        """How long the `times`-th ejection in a row lasts; `dice` is 0 to 1."""
        return min(self.eject_base * times, self.eject_cap) * (1.0 + self.jitter * dice)

    @property
    def most_times(self) -> int:
        """Counting further would change nothing but how long it takes to be forgiven."""
        return math.ceil(self.eject_cap / self.eject_base)

    def slow_start_limit(self, channels: int, age: float) -> int:
        """Calls at once that a trunk of `channels` may carry `age` seconds into slow start."""
        start = self.slow_start_share
        share = start + (1.0 - start) * min(1.0, max(0.0, age / self.slow_start))
        return min(channels, max(1, int(channels * share)))

    def debounce(self, kind: AlarmKind) -> float:
        """How long an alarm must stand before it is believed."""
        if kind in (AlarmKind.RED, AlarmKind.AIS):
            return self.debounce_loss
        return self.debounce_remote if kind is AlarmKind.RAI else 0.0

    def settling(self, alarms: int) -> float:
        """How long a cleared alarm must stay clear, it being the `alarms`-th in a row."""
        return min(self.alarm_settle * alarms, self.alarm_settle_cap)
