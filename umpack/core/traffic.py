"""Traffic theory of a loss group: what a pack of channels should carry and lose.

Traffic is in erlangs (mean number of simultaneous calls), blocking is a probability, calls lost are
gone (no queue, no repeat attempts); every channel of the group is open to every call. Sources:

- A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in
  automatic telephone exchanges", 1917: the loss formula B(N, A).
- R. I. Wilkinson, "Theories for toll traffic engineering in the U.S.A.", Bell System Technical
  Journal 35, 1956, with J. Riordan's appendix: mean and variance of overflow traffic.
- D. R. Cox, "Renewal Theory", 1962: variance of the number of renewals.
- R. Srikant, W. Whitt, "Simulation run lengths to estimate blocking probabilities", ACM TOMACS 6,
  1996: why losses of one run must not be treated as independent trials.
- M. Abramowitz, I. A. Stegun, "Handbook of Mathematical Functions", 26.7: Student's t.

B(N, A) holds for any holding-time distribution with the same mean; the variances (`overflow`,
`loss_variance`) hold for exponential holding times only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from umpack.core.errors import OurFault

# Every answer here costs one step per channel. A million steps take about 0.1 s; beyond that a slip
# of the keyboard ("--erlangs 1e12") would hang the program, and no telephone site is that large.
LIMIT = 1_000_000

NEIGHBOURS = 3  # rows of a plan on either side of the answer


@dataclass(frozen=True, slots=True)
class Overflow:
    """Traffic a group could not take: mean and variance of the calls it would hold elsewhere."""

    mean: float
    variance: float

    @property
    def peakedness(self) -> float:
        """Variance over mean: 1 for Poisson traffic, above 1 for overflow, which comes in lumps."""
        return self.variance / self.mean if self.mean > 0 else 1.0


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One size of the group; `last_channel` is the load of its last channel if hunted linearly."""

    channels: int
    blocking: float
    carried: float
    last_channel: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The smallest group that keeps `blocking`, and its neighbours in ascending order."""

    erlangs: float
    blocking: float
    channels: int
    rows: tuple[PlanRow, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval, ends included."""

    low: float
    estimate: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def blocking(channels: int, erlangs: float) -> float:
    """Erlang's B(N, A): the share of calls lost when A erlangs are offered to N channels.

    0 <= N <= LIMIT and 0 <= A <= LIMIT, else OurFault. B(0, A) is 1: a call would be lost.
    """
    _check_channels(channels)
    _check_erlangs(erlangs)
    return _blocking(channels, erlangs)


def blockings(channels: int, erlangs: float) -> list[float]:
    """B(0, A), B(1, A), …, B(N, A): N + 1 values in O(N). Errors as `blocking`."""
    _check_channels(channels)
    _check_erlangs(erlangs)
    b = 1.0
    row = [b]
    for n in range(1, channels + 1):
        b = erlangs * b / (n + erlangs * b)
        row.append(b)
    return row


def channels_needed(erlangs: float, blocking: float) -> int:
    """The smallest N with B(N, A) <= blocking; 0 < blocking <= 1, 0 <= A <= LIMIT or OurFault."""
    _check_erlangs(erlangs)
    _check_probability(blocking, closed=True)
    b, n = 1.0, 0
    while b > blocking:
        n += 1
        b = erlangs * b / (n + erlangs * b)
    return n


def offered_for(channels: int, blocking: float) -> float:
    """The traffic (erlangs) N channels meet with this blocking; 0 < blocking < 1 or OurFault."""
    _check_channels(channels)
    _check_probability(blocking, closed=False)
    if channels == 0:
        raise OurFault("no channels: every call is lost whatever is offered")
    # The carried traffic A(1 - B) is below N, which bounds A; B grows with A, so bisection cannot
    # miss.
    low, high = 0.0, channels / (1.0 - blocking)
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if _blocking(channels, middle) < blocking:
            low = middle
        else:
            high = middle


def linear_loads(channels: int, erlangs: float) -> list[float]:
    """Load of each channel, first to last, when the first idle one is always taken.

    a_n = A (B(n-1, A) - B(n, A)): what channel n carries is what n - 1 channels lose and n do not.
    This holds for every n because the first n channels of a linear pack see the traffic as if there
    were no others.
    """
    b = blockings(channels, erlangs)
    return [erlangs * (b[n - 1] - b[n]) for n in range(1, channels + 1)]


def cyclic_load(channels: int, erlangs: float) -> float:
    """Load of each channel when turns are taken: A (1 - B) / N, equal by symmetry."""
    b = blocking(channels, erlangs)
    return erlangs * (1.0 - b) / channels if channels else 0.0


def overflow(channels: int, erlangs: float) -> Overflow:
    """What N channels pass on to an overflow pack (Riordan's formulas in Wilkinson 1956)."""
    b = blocking(channels, erlangs)
    mean = erlangs * b
    if mean == 0.0:
        return Overflow(0.0, 0.0)
    carried = erlangs * (1.0 - b)
    peakedness = 1.0 - mean + erlangs / (channels + 1 - carried)
    # Overflow of Poisson traffic is never smoother than Poisson; below 1 is only rounding (N far
    # below A).
    return Overflow(mean, mean * max(1.0, peakedness))


def plan(erlangs: float, blocking: float) -> Plan:
    """How many channels A erlangs need, with the neighbours N-3 … N+3 (none below zero)."""
    needed = channels_needed(erlangs, blocking)
    b = blockings(needed + NEIGHBOURS, erlangs)
    rows = tuple(
        PlanRow(
            channels=n,
            blocking=b[n],
            carried=erlangs * (1.0 - b[n]),
            last_channel=erlangs * (b[n - 1] - b[n]) if n else 0.0,
        )
        for n in range(max(0, needed - NEIGHBOURS), needed + NEIGHBOURS + 1)
    )
    return Plan(erlangs, blocking, needed, rows)


def loss_variance(channels: int, erlangs: float) -> float:
    """Variance of (calls lost / calls offered), times the number of calls offered, for long runs.

    Losses come in lumps: after one, the group is still full. For Poisson calls with exponential
    holding times the losses are a renewal process, since after each the group is in the same state:
    all N busy. The number J of calls from one loss to the next has mean 1/B, and the count of
    renewals in n calls has variance n Var J / (E J)^3 (Cox 1962). E J^2 follows by first passage
    from k busy to k + 1 busy. With c_k = E J_k^2 / (E J_k)^2 and 1/B(k) = 1 + (k/A)/B(k-1),
    everything stays finite:

        c_0 = 1,  c_k = B_k^2 + (1 - B_k) (c_{k-1} B_k / B_{k-1} + 2),  result = B_N (c_N - 1)

    Independent trials would give B (1 - B). Erlang traffic gives up to some ten times that.
    """
    _check_channels(channels)
    _check_erlangs(erlangs)
    b, c = 1.0, 1.0
    for k in range(1, channels + 1):
        ratio = erlangs / (k + erlangs * b)  # B_k / B_{k-1}, defined even where B itself underflows
        b *= ratio
        c = b * b + (1.0 - b) * (c * ratio + 2.0)
    return b * (c - 1.0)


def blocking_interval(
    channels: int, erlangs: float, *, offered: int, lost: int, confidence: float = 0.95
) -> Interval:
    """Confidence interval for the blocking of a group that lost `lost` of `offered` calls.

    Wilson's score interval on the number of *independent* calls worth as much: offered · B(1-B) /
    loss_variance, with B from theory (N, A). It is a test of that theory: compare `blocking(N, A)
    in interval`. The run must have warmed up (several holding times), and be long enough for some
    tens of losses to be expected; holding times other than exponential need `batch_interval`.
    """
    if not 0 <= lost <= offered or offered == 0:
        raise OurFault(f"lost {lost} of {offered} calls is not possible")
    b = blocking(channels, erlangs)
    variance = loss_variance(channels, erlangs)
    # Nothing is random where all calls or none are lost: count each call as one trial.
    weight = b * (1.0 - b) / variance if variance > 0.0 else 1.0
    trials = offered * weight
    z = _normal_quantile(confidence)
    share = lost / offered
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    spread /= 1 + z * z / trials
    return Interval(max(0.0, centre - spread), share, min(1.0, centre + spread))


def batch_interval(batches: Sequence[float], confidence: float = 0.95) -> Interval:
    """Confidence interval for the mean of a correlated series, from means of equal batches.

    Method of batch means with Student's t on (batches - 1) degrees of freedom; it asks for two
    batches or more, each long against the correlation (a batch of a hundred mean holding times is
    long; 20 to 30 batches do well). Use it for the load of one channel, and for blocking under
    non-exponential holding times.
    """
    if len(batches) < 2:
        raise OurFault("batch means need at least two batches")
    if not all(math.isfinite(value) for value in batches):
        raise OurFault("batch means must be finite numbers")
    mean = fmean(batches)
    half = student_t(confidence, len(batches) - 1) * stdev(batches, mean) / math.sqrt(len(batches))
    return Interval(mean - half, mean, mean + half)


def simultaneous(confidence: float, statements: int) -> float:
    """The confidence each statement needs for all to hold with `confidence` (Bonferroni)."""
    _check_confidence(confidence)
    if statements < 1:
        raise OurFault("at least one statement is needed")
    return 1.0 - (1.0 - confidence) / statements


def student_t(confidence: float, freedom: int) -> float:
    """Two-sided quantile of Student's t: P(|T| <= answer) = confidence, for freedom >= 1.

    Bisection on the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4, exact for whole degrees
    of freedom.
    """
    _check_confidence(confidence)
    if freedom < 1:
        raise OurFault("Student's t needs at least one degree of freedom")
    low, high = 0.0, math.pi / 2  # theta = atan(t / sqrt(freedom)): a bounded place to search
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return math.tan(middle) * math.sqrt(freedom)
        if _student_inside(middle, freedom) < confidence:
            low = middle
        else:
            high = middle


def _student_inside(theta: float, freedom: int) -> float:
    """P(|T| <= tan(theta) sqrt(freedom))."""
    sine, cosine = math.sin(theta), math.cos(theta)
    if freedom % 2:
        total, term = 0.0, cosine
        for k in range(
            3, freedom + 1, 2
        ):  # cos, 2/3 cos^3, (2·4)/(3·5) cos^5, … up to cos^(freedom-2)
            total += term
            term *= cosine * cosine * (k - 1) / k
        return (theta + sine * total) * 2 / math.pi
    total, term = 0.0, 1.0
    for k in range(2, freedom + 1, 2):  # 1, 1/2 cos^2, (1·3)/(2·4) cos^4, … up to cos^(freedom-2)
        total += term
        term *= cosine * cosine * (k - 1) / k
    return sine * total


def _blocking(channels: int, erlangs: float) -> float:
    # The recursion grows no number beyond its arguments, unlike A^N / N!.
    b = 1.0
    for n in range(1, channels + 1):
        b = erlangs * b / (n + erlangs * b)
    return b


def _normal_quantile(confidence: float) -> float:
    _check_confidence(confidence)
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_channels(channels: int) -> None:
    if not 0 <= channels <= LIMIT:
        raise OurFault(f"channels must be 0 to {LIMIT}, not {channels}")


def _check_erlangs(erlangs: float) -> None:
    if not 0.0 <= erlangs <= LIMIT:  # NaN fails every comparison
        raise OurFault(f"erlangs must be 0 to {LIMIT}, not {erlangs}")


def _check_probability(blocking: float, *, closed: bool) -> None:
    if not (0.0 < blocking <= 1.0 if closed else 0.0 < blocking < 1.0):
        raise OurFault(
            f"blocking must be above 0 and {'at most' if closed else 'below'} 1, not {blocking}"
        )


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise OurFault(f"confidence must be between 0 and 1, not {confidence}")
