from __future__ import annotations

import pytest

from tests.sites import trunk
from umpack.core.channel import TRANSITIONS, Channel, ChannelEvent, ChannelState
from umpack.core.errors import StateError

IDLE, LEASED, BLOCKED, DRAINING = ChannelState
EVERY = [(event, state) for event in ChannelEvent for state in ChannelState]


def channel_in(state: ChannelState) -> Channel:
    line = trunk("line1")
    channel = Channel(line.channel_id(2), line, 2, 2, ("PJSIP/um",))
    channel.state = state
    return channel


@pytest.mark.parametrize(("event", "state"), EVERY)
def test_moves_only_where_the_table_says(event: ChannelEvent, state: ChannelState) -> None:
    channel = channel_in(state)
    goal = TRANSITIONS[event].get(state)
    if goal is None:
        with pytest.raises(StateError, match=event.name.lower()):
            channel.move(event)
        assert channel.state is state
    else:
        assert channel.move(event) is goal
        assert channel.state is goal


@pytest.mark.parametrize(
    ("event", "state", "goal"),
    [
        (ChannelEvent.LEASE, IDLE, LEASED),
        (ChannelEvent.LEASE, LEASED, None),
        (ChannelEvent.LEASE, BLOCKED, None),
        (ChannelEvent.LEASE, DRAINING, None),
        (ChannelEvent.RELEASE, LEASED, IDLE),
        (ChannelEvent.RELEASE, DRAINING, BLOCKED),
        (ChannelEvent.RELEASE, IDLE, None),
        (ChannelEvent.BLOCK, LEASED, DRAINING),
        (ChannelEvent.UNBLOCK, DRAINING, LEASED),
        (ChannelEvent.UNBLOCK, BLOCKED, IDLE),
    ],
)
def test_the_table_is_what_a_telephone_engineer_expects(
    event: ChannelEvent, state: ChannelState, goal: ChannelState | None
) -> None:
    assert TRANSITIONS[event].get(state) is goal


def test_repr_is_a_status_line_with_the_reasons() -> None:
    channel = channel_in(DRAINING)
    assert repr(channel) == "<line1:2 draining>"
    channel.blocks.update({"drain line1": "drained by anna", "removed": "removed"})
    assert repr(channel) == "<line1:2 draining (drained by anna; removed)>"
