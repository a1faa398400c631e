from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import fields, is_dataclass
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from simulators import line_events as ev
from simulators.board import Board
from simulators.line import (
    BEARER,
    GLARE,
    LAYER1,
    LAYER2,
    Bearer,
    CallRef,
    Defect,
    Direction,
    End,
    Fault,
    Kind,
    Layer1,
    Layer2,
    Side,
    Signal,
    SpanSpec,
    Timers,
    step,
)
from umpack.core.errors import OurFault, StateError

S2M, S0 = SpanSpec(Kind.S2M), SpanSpec(Kind.S0)
TRIP = Timers().round_trip


def ring(board: Board, now: float = 0.0, span: int = 1, **how: object) -> ev.ChannelSeized:
    *_, seized = board.incoming(now, span, caller="49891", called="100", **how)  # type: ignore[arg-type]
    assert isinstance(seized, ev.ChannelSeized)
    return seized


def dial(board: Board, channel: int, now: float = 0.0, *, exclusive: bool = False) -> CallRef:
    *_, seized = board.outgoing(now, channel, caller="100", called="49891", exclusive=exclusive)
    assert isinstance(seized, ev.ChannelSeized)
    return seized.call


def kinds(events: list[ev.Event]) -> list[str]:
    return [type(event).__name__ for event in events]


# Tables


@pytest.mark.parametrize("table", [LAYER1, LAYER2, BEARER])
def test_every_state_is_reached_and_left(table: dict[tuple[object, object], object]) -> None:
    states = {state for state, _ in table}
    assert states == set(type(next(iter(states))))  # type: ignore[call-overload]
    moves = {(state, after) for (state, _), after in table.items() if state is not after}
    assert {before for before, _ in moves} == {after for _, after in moves} == states


def test_a_transition_the_table_lacks_is_an_error() -> None:
    with pytest.raises(StateError, match=r"SETTLED in state Layer1\.RED"):
        step(LAYER1, Layer1.RED, Signal.SETTLED)


def test_glare_table_is_symmetric() -> None:
    assert len(GLARE) == 8
    other = {Side.USER: Side.NETWORK, Side.NETWORK: Side.USER}
    for (side, ours, theirs), winner in GLARE.items():
        # Seen from the other end, the same call wins.
        assert GLARE[other[side], theirs, ours] is not winner


def test_events_are_frozen_slotted_and_picklable() -> None:
    for kind in get_args(ev.Event):
        assert is_dataclass(kind)
        assert kind.__dict__["__dataclass_params__"].frozen
        assert "__dict__" not in dir(kind)
        assert fields(kind)[0].name == "at"
    event = ev.AlarmRaised(1.0, 1, Layer1.RED)
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301


# Numbering


def test_channels_are_numbered_over_all_spans() -> None:
    board = Board([S2M, S2M, S0, S0])
    assert [(s.first, s.last, s.dchannel) for s in board.spans()] == [
        (1, 31, 16),
        (32, 62, 47),
        (63, 65, 65),
        (66, 68, 68),
    ]
    assert board.usable(1) == [*range(1, 16), *range(17, 32)]
    assert board.usable(3) == [63, 64]
    assert [c.timeslot for c in board.channels(2)] == list(range(1, 32))
    assert board.channels(2)[15].bearer is None
    assert board.channel(48).timeslot == 17
    second = Board([S0], first_span=board.next_span, first_channel=board.next_channel)
    assert [(s.number, s.first) for s in second.spans()] == [(5, 69)]


def test_what_is_not_there_is_refused() -> None:
    board = Board([S2M])
    for ask in (
        lambda: board.channel(16),
        lambda: board.channel(32),
        lambda: board.channels(2),
        lambda: board.outgoing(0.0, 0, caller="", called=""),
        lambda: board.defect(0.0, 9, Defect.LOS),
        lambda: Board([SpanSpec(Kind.S2M, multipoint=True)]),
    ):
        with pytest.raises(OurFault):
            ask()
    with pytest.raises(StateError, match="never made"):
        board.answer(0.0, CallRef(1))


def test_time_does_not_go_back() -> None:
    board = Board([S0])
    board.advance(5.0)
    with pytest.raises(StateError, match="went back"):
        board.advance(4.0)
    with pytest.raises(StateError):
        board.advance(float("nan"))


# Calls


def test_an_incoming_call_from_setup_to_idle() -> None:
    board = Board([S0])
    seized = ring(board)
    assert (seized.channel, seized.direction) == (1, Direction.INCOMING)
    assert board.answer(1.0, seized.call) == [ev.CallConnected(1.0, seized.call, 1)]
    view = board.call(seized.call)
    assert view is not None
    assert (view.bearer, view.caller, view.called) == (Bearer.CONNECTED, "49891", "100")
    assert board.calls() == [view]
    assert board.hang_up(2.0, seized.call, 16) == [
        ev.CallCleared(2.0, 1, 1, seized.call, 16, End.LOCAL)
    ]
    assert board.channel(1).bearer is Bearer.RELEASING
    assert not board.channel(1).usable
    assert board.next_timer() == 2.0 + TRIP
    assert board.advance(3.0) == [ev.ChannelReleased(2.0 + TRIP, 1, 1, seized.call, 16)]
    assert board.channel(1).usable
    assert board.call(seized.call) is None
    assert board.hang_up(4.0, seized.call) == []  # again: nothing
    assert board.next_timer() is None


def test_answering_twice_is_an_error_that_loses_no_event() -> None:
    board = Board([S0])
    first, second = ring(board), ring(board)
    board.answer(1.0, first.call)
    board.hang_up(1.0, second.call)
    with pytest.raises(StateError):
        board.answer(2.0, first.call)
    assert kinds(board.advance(2.0)) == ["ChannelReleased"]


def test_an_outgoing_call_without_reply_times_out() -> None:
    board = Board([S2M])
    call = dial(board, 17)
    events = board.advance(100.0)
    assert events[0] == ev.CallCleared(8.0, 1, 17, call, 102, End.LOCAL)
    assert kinds(events) == ["CallCleared", "ChannelReleased"]


def test_the_first_reply_stops_the_clock_and_comes_once() -> None:
    board = Board([S2M])
    call = dial(board, 17)
    assert board.proceed(0.5, call) == [ev.CallProceeded(0.5, call, 17)]
    assert board.advance(100.0) == []
    with pytest.raises(StateError):
        board.proceed(100.0, call)


def test_the_exchange_moves_our_call() -> None:
    board = Board([S2M])
    call = dial(board, 1)
    assert board.proceed(0.1, call, 5) == [
        ev.ChannelMoved(0.1, 1, call, 1, 5),
        ev.CallProceeded(0.1, call, 5),
    ]
    assert board.channel(1).usable  # free at once
    assert board.channel(5).call == call
    assert ring(board, 0.2).channel == 1
    *_, refused = board.outgoing(0.2, 5, caller="", called="")
    assert isinstance(refused, ev.CallRefused)
    assert refused.cause == 44


@pytest.mark.parametrize(("exclusive", "named"), [(False, 2), (False, 16), (True, 5)])
def test_a_channel_we_cannot_take_is_unacceptable(exclusive: bool, named: int) -> None:
    board = Board([S2M])
    ring(board, channel=2)
    call = dial(board, 1, exclusive=exclusive)
    cleared = board.proceed(0.1, call, named)[0]
    assert isinstance(cleared, ev.CallCleared)
    assert cleared.cause == 6


def test_where_an_incoming_call_ends_up() -> None:
    board = Board([S2M])
    assert ring(board).channel == 1  # exchanges hunt upwards
    assert ring(board, channel=1).channel == 31  # flexible: our highest free
    for channel, exclusive, cause in ((1, True, 44), (16, False, 82), (99, True, 82)):
        (refused,) = board.incoming(
            0.0, 1, caller="", called="", channel=channel, exclusive=exclusive
        )
        assert isinstance(refused, ev.CallRefused)
        assert refused.cause == cause
    for _ in range(28):
        ring(board)
    for asked in (None, 1):
        (full,) = board.incoming(0.0, 1, caller="", called="", channel=asked)
        assert isinstance(full, ev.CallRefused)
        assert full.cause == 34


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_glare(side: Side, ours: bool, theirs: bool, full: bool) -> None:
    board = Board([SpanSpec(Kind.S0, side)])
    mine = dial(board, 1, exclusive=ours)
    if full:
        ring(board, channel=2)
    events = board.incoming(0.01, 1, caller="", called="", channel=1, exclusive=theirs)
    glare = events[0]
    assert isinstance(glare, ev.GlareMet)
    # Q.931 Annex D.3: the exclusive SETUP wins, else the network's.
    we_win = ours if ours != theirs else side is Side.NETWORK
    assert (glare.kept == mine) is we_win
    assert board.channel(1).call == glare.kept
    loser_moves = not (theirs if we_win else ours) and not full
    lost = board.call(glare.lost)
    assert (lost is not None) is loser_moves
    if lost is not None:
        assert lost.channel == 2
    elif we_win:
        assert isinstance(events[1], ev.CallRefused)
        assert events[1].cause == 34
    else:
        assert isinstance(events[1], ev.CallCleared)
        assert (events[1].cause, events[1].by) == (34, End.REMOTE)


def test_no_glare_after_the_first_reply() -> None:
    board = Board([S2M])
    board.proceed(0.1, dial(board, 1))
    assert ring(board, 0.2, channel=1).channel == 31


# Layer 1


@pytest.mark.parametrize(
    ("defect", "debounce", "alarm"),
    [
        (Defect.LOS, 2.5, Layer1.RED),
        (Defect.LFA, 2.5, Layer1.RED),
        (Defect.AIS, 2.5, Layer1.BLUE),
        (Defect.RAI, 0.5, Layer1.YELLOW),
    ],
)
def test_an_alarm_from_first_sight_to_clear(defect: Defect, debounce: float, alarm: Layer1) -> None:
    board = Board([S2M, S2M])
    assert board.defect(10.0, 1, defect) == []
    assert board.advance(10.0 + debounce - 0.01) == []
    at = 10.0 + debounce
    assert board.advance(20.0) == [ev.AlarmRaised(at, 1, alarm), ev.DChannelDown(at, 1)]
    assert board.usable(1) == []
    assert len(board.usable(2)) == 30
    assert board.defect(30.0, 1, None) == [ev.AlarmRaised(30.0, 1, Layer1.RECOVERING)]
    assert board.usable(1) == []
    assert board.advance(40.0) == [
        ev.AlarmCleared(35.0, 1, alarm),
        ev.DChannelUp(35.0 + TRIP, 1),
    ]
    assert len(board.usable(1)) == 30


def test_a_glitch_is_no_alarm() -> None:
    board = Board([S2M])
    board.defect(0.0, 1, Defect.LOS)
    assert board.defect(2.4, 1, None) == []
    assert board.advance(100.0) == []


def test_red_is_red_by_whatever_defect() -> None:
    board = Board([S2M])
    board.defect(0.0, 1, Defect.LOS)
    board.defect(2.0, 1, Defect.LFA)  # does not start the debounce anew
    assert board.advance(3.0)[0] == ev.AlarmRaised(2.5, 1, Layer1.RED)
    assert board.defect(4.0, 1, Defect.LOS) == []
    assert board.advance(10.0) == []
    board.defect(10.0, 1, Defect.AIS)
    assert board.defect(12.0, 1, Defect.LOS) == []  # back before blue was sure
    assert board.advance(20.0) == []
    board.defect(20.0, 1, Defect.AIS)
    assert board.advance(30.0) == [ev.AlarmRaised(22.5, 1, Layer1.BLUE)]


def test_a_new_defect_while_recovering() -> None:
    board = Board([S2M])
    board.defect(0.0, 1, Defect.LOS)
    board.defect(10.0, 1, None)
    board.defect(12.0, 1, Defect.RAI)
    assert board.advance(20.0)[0] == ev.AlarmRaised(12.5, 1, Layer1.YELLOW)
    board.defect(20.0, 1, None)
    board.defect(21.0, 1, Defect.LOS)
    board.defect(22.0, 1, None)  # a glitch: settling starts anew
    assert board.advance(50.0)[0] == ev.AlarmCleared(27.0, 1, Layer1.YELLOW)


def test_a_stuck_alarm_needs_a_reset() -> None:
    board = Board([S2M])
    board.set_fault(1, Fault.STUCK_ALARM)
    board.defect(0.0, 1, Defect.LOS)
    board.defect(3.0, 1, None)
    assert board.advance(1000.0) == []
    assert board.spans()[0].layer1 is Layer1.RECOVERING
    board.reset(1000.0, 1)
    assert kinds(board.advance(2000.0)) == ["AlarmCleared", "DChannelUp"]


def test_a_stuck_dchannel_needs_a_reset() -> None:
    board = Board([S2M])
    board.set_fault(1, Fault.STUCK_DCHANNEL)
    board.defect(0.0, 1, Defect.LOS)
    board.defect(3.0, 1, None)
    assert kinds(board.advance(1000.0)) == ["AlarmCleared"]
    assert board.spans()[0].layer2 is Layer2.DOWN
    board.reset(1000.0, 1)
    assert kinds(board.advance(2000.0)) == ["AlarmCleared", "DChannelUp"]
    assert len(board.usable(1)) == 30


# Layer 2


def four_calls(board: Board) -> dict[str, CallRef]:
    calls = {"ringing": ring(board).call, "connected": ring(board).call}
    calls["dialling"] = dial(board, 3)
    calls["releasing"] = ring(board).call
    board.answer(1.0, calls["connected"])
    board.proceed(1.0, calls["dialling"])
    board.mute_dchannel(2.0, 1)
    board.hang_up(2.0, calls["releasing"])
    return calls


def test_dchannel_away_for_less_than_t309() -> None:
    board = Board([S2M])
    calls = four_calls(board)
    events = board.lose_dchannel(2.0, 1)
    assert events[0] == ev.DChannelDown(2.0, 1)
    cleared = {e.call: e.cause for e in events if isinstance(e, ev.CallCleared)}
    assert cleared == {calls["ringing"]: 27, calls["dialling"]: 27}
    assert [c.ref for c in board.calls()] == [calls["connected"]]
    assert board.usable(1) == []
    events = board.restore_dchannel(4.0, 1) + board.advance(5.0)
    assert events == [ev.DChannelUp(5.0, 1)]  # 3 s away
    assert board.advance(1000.0) == []
    assert [c.ref for c in board.calls()] == [calls["connected"]]
    assert len(board.usable(1)) == 29
    # and the call can still be cleared properly
    assert kinds(board.hang_up(1000.0, calls["connected"]) + board.advance(1001.0)) == [
        "CallCleared",
        "ChannelReleased",
    ]


def test_dchannel_away_for_longer_than_t309() -> None:
    board = Board([S2M])
    calls = four_calls(board)
    board.lose_dchannel(2.0, 1)
    assert board.advance(60.0) == [
        ev.CallCleared(8.0, 1, 2, calls["connected"], 27, End.LOCAL),
        ev.ChannelReleased(8.0, 1, 2, calls["connected"], 27),
    ]
    board.restore_dchannel(60.0, 1)
    assert kinds(board.advance(70.0)) == ["DChannelUp"]
    assert len(board.usable(1)) == 30


def test_without_t309_calls_die_with_the_dchannel() -> None:
    board = Board([SpanSpec(Kind.S2M, timers=Timers(t309=0.0))])
    call = ring(board).call
    board.answer(0.0, call)
    assert kinds(board.lose_dchannel(1.0, 1)) == [
        "DChannelDown",
        "CallCleared",
        "ChannelReleased",
    ]


def test_a_silent_exchange_is_noticed_after_13_seconds() -> None:
    board = Board([S2M])
    board.mute_dchannel(0.0, 1)
    assert board.advance(10.5) == []
    assert board.spans()[0].layer2 is Layer2.POLLING
    assert board.advance(20.0) == [ev.DChannelDown(13.0, 1)]
    board.restore_dchannel(20.0, 1)
    assert board.advance(30.0) == [ev.DChannelUp(21.0, 1)]


def test_silence_that_ends_in_time_is_not_noticed() -> None:
    board = Board([S2M])
    board.mute_dchannel(0.0, 1)
    board.restore_dchannel(12.0, 1)
    assert board.advance(100.0) == []
    assert board.spans()[0].layer2 is Layer2.UP


def test_what_the_exchange_could_not_say_is_said_later() -> None:
    board = Board([S2M])
    call = ring(board).call
    board.answer(0.0, call)
    board.mute_dchannel(1.0, 1)
    assert board.hang_up(2.0, call, 16, End.REMOTE) == []
    assert board.call(call) is not None
    assert board.restore_dchannel(3.0, 1) == [ev.CallCleared(3.0, 1, 1, call, 16, End.REMOTE)]
    outgoing = dial(board, 5, 4.0)
    board.defect(5.0, 1, Defect.LOS)
    assert board.proceed(5.1, outgoing) == []
    assert board.answer(5.2, outgoing) == []
    board.hang_up(5.3, outgoing, 17, End.REMOTE)
    (cleared,) = board.defect(6.0, 1, None)
    assert isinstance(cleared, ev.CallCleared)
    assert cleared.cause == 17


def test_a_call_to_a_dead_line() -> None:
    board = Board([S2M])
    board.mute_dchannel(0.0, 1)
    (refused,) = board.incoming(0.0, 1, caller="", called="")
    assert isinstance(refused, ev.CallRefused)
    assert refused.cause == 27
    dial(board, 1)  # we do not know yet
    board.advance(50.0)
    (refused,) = board.outgoing(50.0, 1, caller="", called="")
    assert isinstance(refused, ev.CallRefused)
    assert refused.cause == 27


def test_hang_up_between_loss_and_notice() -> None:
    # libpri issue 5: the channel must be idle when the link is back.
    board = Board([S2M])
    call = ring(board).call
    board.answer(0.0, call)
    board.mute_dchannel(1.0, 1)
    board.hang_up(12.0, call)
    assert kinds(board.advance(30.0)) == ["DChannelDown", "ChannelReleased"]
    board.restore_dchannel(30.0, 1)
    board.advance(40.0)
    assert len(board.usable(1)) == 30


def test_hang_up_while_the_link_is_down_frees_at_once() -> None:
    board = Board([S2M])
    call = ring(board).call
    board.answer(0.0, call)
    board.lose_dchannel(1.0, 1)
    assert board.hang_up(2.0, call) == [
        ev.CallCleared(2.0, 1, 1, call, 16, End.LOCAL),
        ev.ChannelReleased(2.0, 1, 1, call, 16),
    ]
    assert board.channel(1).bearer is Bearer.IDLE


def test_a_timer_of_the_old_call_leaves_the_new_one_alone() -> None:
    board = Board([S2M])
    board.set_fault(1, Fault.NO_RELEASE)
    board.hang_up(0.0, ring(board).call)  # would be timed out at 8 s
    board.lose_dchannel(1.0, 1)
    board.restore_dchannel(2.0, 1)
    new = ring(board, 4.0)
    assert new.channel == 1
    assert board.advance(20.0) == []
    assert board.channel(1).call == new.call


def test_sabme_is_repeated() -> None:
    board = Board([S2M])
    board.lose_dchannel(0.0, 1)
    board.restore_dchannel(1.0, 1)
    board.defect(1.5, 1, Defect.LOS)  # swallows the SABME of 2.0
    board.defect(2.5, 1, None)
    assert board.advance(20.0) == [ev.DChannelUp(3.0, 1)]


def test_a_cleared_call_leaves_no_timer() -> None:
    board = Board([S2M])
    call = dial(board, 1)
    board.hang_up(0.0, call)
    board.advance(1.0)
    assert board.next_timer() is None


def test_a_release_that_is_not_answered() -> None:
    board = Board([S2M])
    board.set_fault(1, Fault.NO_RELEASE)
    call = ring(board).call
    board.hang_up(1.0, call)
    assert board.advance(100.0) == [ev.ChannelReleased(9.0, 1, 1, call, 16)]


def test_a_stuck_channel_needs_a_restart() -> None:
    board = Board([S2M])
    board.set_fault(1, Fault.STUCK_CHANNEL)
    call = ring(board).call
    board.hang_up(1.0, call)
    board.lose_dchannel(2.0, 1)
    board.restore_dchannel(3.0, 1)
    board.advance(100.0)
    assert board.channel(1).bearer is Bearer.RELEASING
    board.restart(100.0, 1)
    assert board.advance(101.0) == [
        ev.ChannelReleased(100.0 + TRIP, 1, 1, call, 16),
        ev.ChannelRestarted(100.0 + TRIP, 1, 1, True),
    ]


def test_restart_kills_the_call() -> None:
    board = Board([S2M])
    call = ring(board).call
    assert board.restart(1.0, 1) == [ev.CallCleared(1.0, 1, 1, call, 41, End.LOCAL)]
    assert ring(board, 1.0, channel=1).channel == 31  # restarting is not idle
    assert kinds(board.advance(2.0)) == ["ChannelReleased", "ChannelRestarted"]


def test_an_unanswered_restart_gives_the_channel_back() -> None:
    board = Board([S2M])
    board.set_fault(1, Fault.NO_RESTART)
    board.restart(0.0, 1)
    assert board.advance(1000.0) == [ev.ChannelRestarted(360.0, 1, 1, False)]
    assert ring(board, 1000.0).channel == 1


def test_restart_is_repeated_when_the_link_is_back() -> None:
    board = Board([S2M])
    board.mute_dchannel(0.0, 1)
    board.restart(0.0, 1)
    board.set_fault(1, Fault.NO_RESTART, on=False)
    board.restore_dchannel(5.0, 1)
    assert board.advance(6.0) == [ev.ChannelRestarted(5.0 + TRIP, 1, 1, True)]


def test_the_exchange_restarts_a_channel() -> None:
    board = Board([S2M])
    call = ring(board).call
    assert board.restart_by_exchange(1.0, 1) == [
        ev.CallCleared(1.0, 1, 1, call, 41, End.REMOTE),
        ev.ChannelReleased(1.0, 1, 1, call, 41),
    ]
    assert board.restart_by_exchange(1.0, 2) == []
    board.mute_dchannel(2.0, 1)
    ring_before = board.calls()
    assert board.restart_by_exchange(2.0, 3) == []
    assert board.calls() == ring_before


def test_a_multipoint_s0_may_rest() -> None:
    board = Board([SpanSpec(Kind.S0, multipoint=True)])
    assert board.lose_dchannel(0.0, 1) == []
    assert board.spans()[0].layer2 is Layer2.ASLEEP
    assert board.usable(1) == [1, 2]
    ring(board, 1.0)
    assert board.spans()[0].layer2 is Layer2.UP
    # In use it is a link like others, only not reported.
    assert kinds(board.lose_dchannel(2.0, 1)) == ["CallCleared", "ChannelReleased"]
    assert board.usable(1) == []
    board.restore_dchannel(3.0, 1)
    assert board.advance(10.0) == []
    assert board.usable(1) == [1, 2]
    board.lose_dchannel(11.0, 1)
    board.mute_dchannel(11.0, 1)
    dial(board, 1, 12.0)
    board.advance(40.0)
    assert board.spans()[0].layer2 is Layer2.DOWN


# The whole board


def test_unplug_and_replug() -> None:
    board = Board([S0, S0])
    call = ring(board).call
    board.answer(0.0, call)
    assert board.unplug(1.0) == [
        ev.CallCleared(1.0, 1, 1, call, 27, End.LOCAL),
        ev.ChannelReleased(1.0, 1, 1, call, 27),
        ev.BoardUnplugged(1.0),
    ]
    assert board.unplug(1.0) == []
    assert board.usable(1) == []
    for refused in (
        board.incoming(2.0, 1, caller="", called=""),
        board.outgoing(2.0, 1, caller="", called=""),
    ):
        assert kinds(refused) == ["CallRefused"]
    assert board.defect(3.0, 2, Defect.LOS) == []
    assert board.mute_dchannel(3.0, 1) + board.restore_dchannel(3.0, 1) == []
    assert board.lose_dchannel(3.0, 1) + board.restore_dchannel(3.0, 1) == []
    assert board.restart(3.0, 1) + board.reset(3.0, 1) == []
    assert board.next_timer() is None
    assert board.replug(4.0) == [
        ev.BoardReplugged(4.0),
        ev.AlarmRaised(4.0, 1, Layer1.RECOVERING),
        ev.AlarmRaised(4.0, 2, Layer1.RED),
    ]
    assert board.replug(4.0) == []
    assert board.advance(20.0) == [
        ev.AlarmCleared(9.0, 1, Layer1.RECOVERING),
        ev.DChannelUp(9.0 + TRIP, 1),
    ]
    assert board.usable(1) == [1, 2]
    assert repr(board) == "<Board 1 s0 ok/up 0/2 busy, 2 s0 red/down 0/2 busy>"


class AnyBoard(RuleBasedStateMachine):
    """Whatever happens, in whatever order: books kept from events alone agree with the board."""

    @initialize(
        specs=st.lists(
            st.builds(
                lambda kind, side, multi: SpanSpec(kind, side, multi and kind is Kind.S0),
                st.sampled_from([Kind.S0, Kind.S0, Kind.S2M]),
                st.sampled_from(Side),
                st.booleans(),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def start(self, specs: list[SpanSpec]) -> None:
        self.board = Board(specs)
        self.now = 0.0
        self.refs: list[CallRef] = []
        self.at: dict[CallRef, int] = {}  # calls and their channels, as told
        self.busy: dict[int, CallRef] = {}  # channels not yet released, as told
        self.over: Counter[CallRef] = Counter()
        self.last = 0.0
        self.faulty = False
        self.bearers = [c.number for s in self.board.spans() for c in self.board.channels(s.number)]
        self.bearers = [n for n in self.bearers if self.is_bearer(n)]

    def is_bearer(self, number: int) -> bool:
        return all(number != span.dchannel for span in self.board.spans())

    def heard(self, events: list[ev.Event]) -> None:
        for event in events:
            assert self.last <= event.at <= self.now
            self.last = event.at
            match event:
                case ev.ChannelSeized():
                    assert event.channel not in self.busy
                    self.at[event.call] = event.channel
                    self.busy[event.channel] = event.call
                    self.refs.append(event.call)
                case ev.ChannelMoved():
                    assert event.new not in self.busy
                    assert self.busy.pop(event.old) == event.call
                    self.busy[event.new] = event.call
                    self.at[event.call] = event.new
                case ev.CallCleared():
                    assert self.at.pop(event.call) == event.channel
                    self.over[event.call] += 1
                case ev.ChannelReleased():
                    assert self.busy.pop(event.channel) == event.call
                    assert event.call not in self.at
                case ev.CallConnected() | ev.CallProceeded():
                    assert self.at[event.call] == event.channel
                case ev.CallRefused():
                    self.over[event.call] += 1
                case _:
                    pass

    def span(self, pick: int) -> int:
        return pick % len(self.board.spans()) + 1

    def bearer(self, pick: int) -> int:
        return self.bearers[pick % min(4, len(self.bearers))]  # few, so that things collide

    picks = st.integers(0, 99)

    @rule(wait=st.sampled_from([0.01, 0.5, 2.5, 5.0, 13.0, 400.0]))
    def wait(self, wait: float) -> None:
        self.now += wait
        self.heard(self.board.advance(self.now))
        timer = self.board.next_timer()
        assert timer is None or timer > self.now

    @rule(span=picks, channel=st.none() | picks, exclusive=st.booleans())
    def incoming(self, span: int, channel: int | None, exclusive: bool) -> None:
        n = None if channel is None else self.bearer(channel)
        self.heard(
            self.board.incoming(
                self.now, self.span(span), caller="1", called="2", channel=n, exclusive=exclusive
            )
        )

    @rule(channel=picks, exclusive=st.booleans())
    def outgoing(self, channel: int, exclusive: bool) -> None:
        n = self.bearer(channel)
        usable = self.board.channel(n).usable
        events = self.board.outgoing(self.now, n, caller="1", called="2", exclusive=exclusive)
        assert usable is isinstance(events[-1], ev.ChannelSeized)
        self.heard(events)

    @precondition(lambda self: self.refs)
    @rule(pick=picks)
    def answer(self, pick: int) -> None:
        view = self.board.call(ref := self.refs[pick % len(self.refs)])
        if view is None or view.bearer is not Bearer.CONNECTED:
            self.heard(self.board.answer(self.now, ref))

    @precondition(lambda self: self.refs)
    @rule(pick=picks, channel=st.none() | picks)
    def proceed(self, pick: int, channel: int | None) -> None:
        named = None if channel is None else self.bearer(channel)
        try:
            self.heard(self.board.proceed(self.now, self.refs[pick % len(self.refs)], named))
        except StateError:
            assert self.board.call(self.refs[pick % len(self.refs)]) is not None

    @precondition(lambda self: self.refs)
    @rule(pick=picks, by=st.sampled_from(End))
    def hang_up(self, pick: int, by: End) -> None:
        self.heard(self.board.hang_up(self.now, self.refs[pick % len(self.refs)], 16, by))

    @rule(channel=picks, ours=st.booleans())
    def restart(self, channel: int, ours: bool) -> None:
        restart = self.board.restart if ours else self.board.restart_by_exchange
        self.heard(restart(self.now, self.bearer(channel)))

    @rule(span=picks, defect=st.none() | st.sampled_from(Defect))
    def defect(self, span: int, defect: Defect | None) -> None:
        self.heard(self.board.defect(self.now, self.span(span), defect))

    @rule(span=picks, what=st.sampled_from(["lose", "mute", "restore"]))
    def dchannel(self, span: int, what: str) -> None:
        self.heard(getattr(self.board, f"{what}_dchannel")(self.now, self.span(span)))

    @rule(span=picks, fault=st.sampled_from(Fault), on=st.booleans())
    def fault(self, span: int, fault: Fault, on: bool) -> None:
        self.faulty = True
        self.board.set_fault(self.span(span), fault, on=on)

    @rule(span=picks)
    def reset(self, span: int) -> None:
        self.heard(self.board.reset(self.now, self.span(span)))

    @rule(plug=st.booleans())
    def plug(self, plug: bool) -> None:
        self.heard(self.board.replug(self.now) if plug else self.board.unplug(self.now))

    @invariant()
    def no_channel_with_two_calls(self) -> None:
        views = self.board.calls()
        assert {view.ref: view.channel for view in views} == self.at
        assert len({view.channel for view in views}) == len(views)
        for view in views:
            assert self.board.channel(view.channel).call == view.ref
        assert all(count == 1 for count in self.over.values())

    @invariant()
    def channels_conserved(self) -> None:
        for number in self.bearers:
            view = self.board.channel(number)
            assert (view.call is not None) is (
                view.bearer in (Bearer.INCOMING, Bearer.OUTGOING, Bearer.CONNECTED)
            )
            if view.bearer is Bearer.IDLE:
                assert number not in self.busy
            elif view.bearer is not Bearer.RESTARTING:
                assert number in self.busy

    def teardown(self) -> None:
        """After every accident is mended, all alarms clear and all channels come back."""
        if not hasattr(self, "board"):
            return
        self.heard(self.board.replug(self.now))
        for span in self.board.spans():
            n = span.number
            for fault in Fault:
                self.board.set_fault(n, fault, on=False)
            self.heard(self.board.defect(self.now, n, None))
            self.heard(self.board.restore_dchannel(self.now, n))
            if self.faulty:  # what was stuck needs a reset; anything else mends itself
                self.heard(self.board.reset(self.now, n))
        self.now += 1000.0
        self.heard(self.board.advance(self.now))
        for view in self.board.calls():
            self.heard(self.board.hang_up(self.now, view.ref))
        self.now += 1.0
        self.heard(self.board.advance(self.now))
        for span in self.board.spans():
            assert span.layer1 is Layer1.OK
            assert span.layer2 in (Layer2.UP, Layer2.ASLEEP)
            assert len(self.board.usable(span.number)) == (30 if span.kind is Kind.S2M else 2)
        assert self.at == {}
        assert self.busy == {}
        assert self.board.next_timer() is None


AnyBoard.TestCase.settings = settings(deadline=None, max_examples=120, stateful_step_count=40)
TestAnyBoard = AnyBoard.TestCase
