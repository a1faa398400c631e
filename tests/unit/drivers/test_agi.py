from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.asterisk.agi import (
    TRANSITIONS,
    AgiAnswer,
    AgiEnvironment,
    AgiEvent,
    AgiLimits,
    AgiProtocol,
    HungUp,
    State,
    Step,
    Trying,
    legible,
)
from drivers.asterisk.agi_commands import (
    COMMAND_BYTES,
    COMMAND_WORDS,
    SEPARATOR,
    AgiCommand,
    UnsafeArgument,
    command,
    exec_,
    get_full_variable,
    set_variable,
)
from tests.feeding import feed_three_ways
from umpack.core.errors import ProtocolFault, StateError

Feed = Callable[[bytes], list[AgiEvent]]

ENVIRONMENT = """\
agi_network: yes
agi_network_script: um?pack=a: b
agi_request: agi://127.0.0.1:4573/um
agi_channel: PJSIP/line-00000001
agi_language: en
agi_type: PJSIP
agi_uniqueid: 1767225600.7
agi_version: 22.5.2
agi_callerid: 4930123456
agi_calleridname: Zoë: from "home" \\ (x)
agi_callingpres: 0
agi_callingani2: 0
agi_callington: 0
agi_callingtns: 0
agi_dnid: 49302000
agi_rdnis: unknown
agi_context: from-line
agi_extension: 49302000
agi_priority: 1
agi_enhanced: 0.0
agi_accountcode: \nagi_threadid: 140
agi_arg_1: one
agi_arg_2: two, three

""".encode()


def fresh() -> Feed:
    return AgiProtocol().feed


def idle(limits: AgiLimits | None = None) -> AgiProtocol:
    protocol = AgiProtocol(limits or AgiLimits())
    protocol.feed(b"agi_channel: x\n\n")
    return protocol


def waiting(line: AgiCommand | None = None, limits: AgiLimits | None = None) -> Callable[[], Feed]:
    def start() -> Feed:
        protocol = idle(limits)
        protocol.send(line or command("NOOP"))
        return protocol.feed

    return start


# --- environment ------------------------------------------------------------------------------


def test_environment_as_asterisk_sends_it() -> None:
    (environment,) = feed_three_ways(fresh, ENVIRONMENT, b"HANG")
    assert isinstance(environment, AgiEnvironment)
    assert environment.channel == "PJSIP/line-00000001"
    assert environment.uniqueid == "1767225600.7"
    assert environment.network_script == "um?pack=a: b"  # only the first ": " parts
    assert environment.calleridname == 'Zoë: from "home" \\ (x)'
    assert environment.callerid == "4930123456"
    assert (environment.dnid, environment.rdnis) == ("49302000", "unknown")
    assert (environment.extension, environment.context) == ("49302000", "from-line")
    assert (environment.type, environment.language) == ("PJSIP", "en")
    assert environment.accountcode == ""
    assert environment.arguments == ("one", "two, three")
    assert environment["agi_threadid"] == "140"  # kept, though no property names it
    assert len(environment) == 24
    assert next(iter(environment)) == "agi_network"
    assert "PJSIP/line-00000001" in repr(environment)


def test_what_was_not_sent_is_empty() -> None:
    (environment,) = feed_three_ways(fresh, b"agi_channel: x\n\n")
    assert isinstance(environment, AgiEnvironment)
    assert environment.extension == ""
    assert environment.arguments == ()
    assert AgiEnvironment.extension == "agi_extension"


def test_bytes_that_are_not_utf8_are_not_lost() -> None:
    (environment,) = feed_three_ways(fresh, b"agi_calleridname: M\xfcller\xc3\n\n", b"\xc3")
    assert isinstance(environment, AgiEnvironment)
    assert legible(environment.calleridname) == "M\ufffdller\ufffd"
    assert environment.calleridname.encode("utf-8", "surrogateescape") == b"M\xfcller\xc3"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\n\n",
        b"\n\n",
        b"agi_channel: x\nno colon\n\n",
        b"agi_channel:x\n\n",
        b"channel: x\n\n",
        b"agi_channel: x\nchannel: y\n\n",
        b"agi_channel: x\r\n\r\nagi_y: z\n\n",
        # A line break in the caller's number must not choose the extension or end the lines.
        b"agi_callerid: 1\nagi_extension: 999\nagi_extension: 100\n\n",
        b"agi_callerid: 1\n\nagi_extension: 100\n\n",
        b"HANGUP\nHANGUP\nagi_channel: x\n\n",
    ],
)
def test_what_is_no_environment(garbage: bytes) -> None:
    with pytest.raises(ProtocolFault):
        feed_three_ways(fresh, garbage)


def test_environment_limits() -> None:
    limits = AgiLimits(line=40, environment_lines=3, block=100)

    def start() -> Feed:
        return AgiProtocol(limits).feed

    longest = b"agi_a: " + b"x" * 33
    assert feed_three_ways(start, b"agi_1: x\nagi_2: x\nagi_3: x\n\n")
    assert feed_three_ways(start, longest + b"\n\n")
    with pytest.raises(ProtocolFault, match="more than 3 lines"):
        feed_three_ways(start, b"agi_1: x\nagi_2: x\nagi_3: x\nagi_4: x\n\n")
    with pytest.raises(ProtocolFault, match="longer than 40"):
        feed_three_ways(start, longest + b"x\n\n")
    with pytest.raises(ProtocolFault, match="environment longer than 100"):
        feed_three_ways(start, b"\n".join(b"agi_%d: " % n + b"x" * 32 for n in range(3)) + b"\n\n")
    # And before any end has come, so that a slow writer cannot make it grow.
    with pytest.raises(ProtocolFault):
        start()(b"agi_a: " + b"x" * 34)
    with pytest.raises(ProtocolFault):
        start()(b"a: x\n" * 4)


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("200 result=0", AgiAnswer(200, 0)),
        ("200 result=-1", AgiAnswer(200, -1)),
        ("200 result=1 (ANSWER)", AgiAnswer(200, 1, "ANSWER")),
        ("200 result=1 ()", AgiAnswer(200, 1)),
        ("200 result=1 (a(b)c)", AgiAnswer(200, 1, "a(b)c")),
        ("200 result=1 (x) endpos=5 (y)", AgiAnswer(200, 1, "x) endpos=5 (y")),
        ("200 result=1 (a) b=c)", AgiAnswer(200, 1, "a) b=c")),
        ("200 result=1 (\x1f200 result=0)", AgiAnswer(200, 1, "\x1f200 result=0")),
        ("200 result=0 endpos=0", AgiAnswer(200, 0, "", (("endpos", "0"),))),
        ("200 result=1 (timeout) endpos=80", AgiAnswer(200, 1, "timeout", (("endpos", "80"),))),
        ("200 result=-1 (hangup) endpos=0", AgiAnswer(200, -1, "hangup", (("endpos", "0"),))),
        (
            "200 result=1 (digit) digit=5 endpos=7",
            AgiAnswer(200, 1, "digit", (("digit", "5"), ("endpos", "7"))),
        ),
        ("200 result=007 (timeout)", AgiAnswer(200, "007", "timeout")),  # digits, not a number
        ("200 result=#", AgiAnswer(200, "#")),
        ("200 result= (timeout)", AgiAnswer(200, "", "timeout")),
        ("200 result=" + "9" * 5000, AgiAnswer(200, "9" * 5000)),  # int() would refuse
        ("510 Invalid or unknown command", AgiAnswer(510, "", "Invalid or unknown command")),
        (
            "511 Command Not Permitted on a dead channel or intercept routine",
            AgiAnswer(511, "", "Command Not Permitted on a dead channel or intercept routine"),
        ),
        (
            "520 Invalid command syntax.  Proper usage not available.",
            AgiAnswer(520, "", "Invalid command syntax.  Proper usage not available."),
        ),
    ],
)
def test_answer(line: str, answer: AgiAnswer) -> None:
    assert feed_three_ways(waiting(), line.encode() + b"\n", b"HANGU") == [answer]
    assert answer.ok == (answer.code == 200)


def test_usage_of_many_lines_is_one_answer() -> None:
    text = (
        b"520-Invalid command syntax.  Proper usage follows:\n"
        b"Usage: SET VARIABLE <name>\n\n200 result=0 is what it says\n520 End of proper usage.\n"
    )
    usage = "Usage: SET VARIABLE <name>\n\n200 result=0 is what it says"
    assert feed_three_ways(waiting(), text, b"2") == [AgiAnswer(520, "", usage)]
    amid = text.replace(b"\n\n", b"\nHANGUP\n\n")
    assert feed_three_ways(waiting(), amid) == [HungUp(), AgiAnswer(520, "", usage)]


def test_usage_without_end() -> None:
    limits = AgiLimits(block=1000)
    with pytest.raises(ProtocolFault, match="usage text longer"):
        feed_three_ways(waiting(limits=limits), b"520-Usage:\n" + b"ever more\n" * 200)


def test_intermediate_answer_comes_before_the_final_one() -> None:
    events = feed_three_ways(waiting(), b"100 result=0 Trying...\n200 result=0\n", b"HAN")
    assert events == [Trying(100), AgiAnswer(200, 0)]


def test_hangup_between_anything_is_told_once() -> None:
    assert feed_three_ways(waiting(), b"HANGUP\n200 result=-1\nHANGUP\n") == [
        HungUp(),
        AgiAnswer(200, -1),
    ]
    assert feed_three_ways(lambda: idle().feed, b"HANGUP\nHANGUP\n", b"HANG") == [HungUp()]
    first, second = feed_three_ways(fresh, b"agi_a: x\nHANGUP\n\n")
    assert first == HungUp()
    assert isinstance(second, AgiEnvironment)
    assert dict(second) == {"agi_a": "x"}
    protocol = idle()
    assert not protocol.hung_up
    protocol.feed(b"HANGUP\n")
    assert protocol.hung_up
    assert repr(protocol) == "<AgiProtocol idle, hung up>"
    protocol.send(command("NOOP"))  # still answered, on a dead channel


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"garbage\n",
        b"200\n",
        b"200 \n",
        b"200 results=0\n",
        b"200 result=1 (open\n",
        b"200 result=0 more\n",
        b"200-result=0\n",
        b"201 result=0\n",
        b"404 Not Found\n",
        b"999 result=0\n",
        b"\xff\xfe\n",
        b"200 result=0\n200 result=0\n",  # two answers to one command
        b"510-Invalid\n",
    ],
)
def test_what_is_no_answer(garbage: bytes) -> None:
    with pytest.raises(ProtocolFault):
        feed_three_ways(waiting(), garbage)


@pytest.mark.parametrize("line", [b"200 result=0\n", b"100 Trying\n", b"520 x\n", b"520-x\n"])
def test_an_answer_nobody_asked_for(line: bytes) -> None:
    with pytest.raises(ProtocolFault, match="unexpected while idle"):
        feed_three_ways(lambda: idle().feed, line)


def test_a_line_longer_than_the_limit() -> None:
    with pytest.raises(ProtocolFault, match="line longer than 8192"):
        feed_three_ways(waiting(), b"200 result=1 (" + b"x" * 8192)
    whole = b"200 result=1 (%b)" % (b"x" * (8192 - 15))
    assert len(feed_three_ways(waiting(), whole + b"\n")) == 1
    with pytest.raises(ProtocolFault, match="line longer than 8192"):
        feed_three_ways(waiting(), whole + b")\n")


USAGE = b"520-Invalid command syntax.  Proper usage follows:\nEXEC it\n520 End of proper usage.\n"


def test_usage_echoed_after_an_application_that_returned_one() -> None:
    # Asterisk prints it after the answer, before or after our next command: it answers nothing.
    protocol = idle()
    protocol.send(exec_("Playback", "x"))
    assert protocol.feed(b"200 result=1\n") == [AgiAnswer(200, 1)]
    assert protocol.feed(USAGE) == []
    protocol.send(exec_("Playback", "x"))
    assert protocol.feed(b"200 result=1\n" + USAGE) == [AgiAnswer(200, 1)]
    protocol.send(exec_("Playback", "x"))
    protocol.feed(b"200 result=1\n")
    protocol.send(command("NOOP"))
    assert protocol.feed(USAGE + b"200 result=0\n") == [AgiAnswer(200, 0)]
    # Only once, and only after EXEC.
    with pytest.raises(ProtocolFault):
        protocol.feed(USAGE)


def test_no_echo_after_other_commands() -> None:
    protocol = idle()
    protocol.send(get_full_variable("X"))
    protocol.feed(b"200 result=1 (x)\n")
    protocol.send(command("NOOP"))
    assert protocol.feed(USAGE) == [AgiAnswer(520, "", "EXEC it")]


def test_several_values_in_one_answer() -> None:
    line = get_full_variable("DIALSTATUS", "HANGUPCAUSE", "CHANNEL(pjsip,call-id)")
    assert line == (
        b'GET FULL VARIABLE "${DIALSTATUS}\x1f${HANGUPCAUSE}\x1f${CHANNEL(pjsip,call-id)}"\n'
    )
    (answer,) = feed_three_ways(waiting(line), b"200 result=1 (BUSY\x1f17\x1f)\n")
    assert isinstance(answer, AgiAnswer)
    assert answer.values(3) == ("BUSY", "17", "")
    with pytest.raises(ProtocolFault):
        answer.values(2)
    with pytest.raises(ProtocolFault):
        AgiAnswer(510, "", "Invalid").values(1)


# --- states -----------------------------------------------------------------------------------


def test_table_is_complete_and_every_state_reachable() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {State.ENVIRONMENT}
    for _ in State:
        reached |= {after for state in reached for after in TRANSITIONS[state].values()}
    assert reached == set(State)
    assert {step for row in TRANSITIONS.values() for step in row} == set(Step)
    sinks = {state for state, row in TRANSITIONS.items() if set(row.values()) <= {state}}
    assert sinks == {State.DEAD}


def test_one_command_at_a_time() -> None:
    protocol = AgiProtocol()
    with pytest.raises(StateError, match="environment"):
        protocol.send(command("NOOP"))
    protocol.feed(ENVIRONMENT)
    assert repr(protocol) == "<AgiProtocol idle>"
    assert protocol.send(command("NOOP")) == b"NOOP\n"
    assert repr(protocol) == "<AgiProtocol waiting>"
    with pytest.raises(StateError, match="waiting"):
        protocol.send(command("NOOP"))
    protocol.feed(b"200 result=0\n")
    protocol.end()
    with pytest.raises(StateError, match="dead"):
        protocol.send(command("NOOP"))


@pytest.mark.parametrize("before", [b"", b"agi_a: ", ENVIRONMENT, ENVIRONMENT + b"HANG"])
def test_after_the_end_bytes_are_dropped(before: bytes) -> None:
    protocol = AgiProtocol()
    protocol.feed(before)
    protocol.end()
    protocol.end()
    assert protocol.feed(b"HANGUP\n" + ENVIRONMENT) == []
    assert protocol.state is State.DEAD
    assert not protocol.hung_up


def test_a_fault_is_the_end() -> None:
    protocol = idle()
    with pytest.raises(ProtocolFault):
        protocol.feed(b"garbage\n")
    assert protocol.state is State.DEAD
    assert protocol.feed(b"garbage\n") == []


def pickled(event: AgiEvent) -> AgiEvent:
    copy: AgiEvent = pickle.loads(pickle.dumps(event))  # noqa: S301
    return copy


def test_events_are_values() -> None:
    (environment,) = fresh()(ENVIRONMENT)
    assert isinstance(environment, AgiEnvironment)
    for event in (AgiAnswer(200, 1, "x", (("endpos", "0"),)), Trying(100), HungUp()):
        assert pickled(event) == event
        assert hash(pickled(event)) == hash(event)
        with pytest.raises((AttributeError, TypeError)):
            event.code = 7  # type: ignore[union-attr,misc]
    copy = pickled(environment)
    assert isinstance(copy, AgiEnvironment)
    assert dict(copy) == dict(environment)


# --- fuzz -------------------------------------------------------------------------------------

LINES = st.sampled_from(
    b"HANGUP|200 result=0|200 result=1 (x)|100 result=0 Trying...|510 Invalid|520-Usage|"
    b"520 End of proper usage.||agi_x: y|agi_y: \xff|200 result=".split(b"|")
)
JUNK = st.lists(LINES | st.binary(max_size=12), max_size=12).map(b"\n".join)


@settings(deadline=None)
@given(st.lists(JUNK | st.binary(max_size=60), max_size=8), st.booleans())
def test_nothing_but_protocol_faults(chunks: list[bytes], begun: bool) -> None:
    protocol = idle(AgiLimits(line=64, block=300)) if begun else AgiProtocol()
    for chunk in chunks:
        if protocol.state is State.IDLE:
            protocol.send(exec_("X"))
        try:
            events = protocol.feed(chunk)
        except ProtocolFault:
            assert protocol.state is State.DEAD
        else:
            assert all(isinstance(event, AgiEvent) for event in events)


DIALOGUE = (
    ENVIRONMENT,
    b"100 result=0 Trying...\nHANGUP\n200 result=1\n" + USAGE,
    b"200 result=1 (a(b)c) endpos=0\n",
    USAGE + b"HANGUP\n",
)


@settings(deadline=None)
@given(st.data())
def test_cuts_make_no_difference(data: st.DataObject) -> None:
    whole, cut = AgiProtocol(), AgiProtocol()
    for part in DIALOGUE:
        if whole.state is State.IDLE:
            whole.send(exec_("X"))
            cut.send(exec_("X"))
        places = sorted(data.draw(st.lists(st.integers(0, len(part)), max_size=6)))
        edges = [0, *places, len(part)]
        pieces = [part[a:b] for a, b in pairwise(edges)]
        expected = whole.feed(part)
        assert [str(event) for piece in pieces for event in cut.feed(piece)] == [
            str(event) for event in expected
        ]


# --- commands ---------------------------------------------------------------------------------


def read_by_asterisk(received: bytes) -> list[list[bytes]]:
    """The words of each command Asterisk finds: fgets() into 8192 bytes, then its parse_args().

    Written anew from what they do, as a list of finished words and one in the making.
    """
    commands = []
    while received:
        end = received.find(b"\n", 0, 8191) + 1 or 8191
        line, received = received[:end].rstrip(b"\n").split(b"\0")[0], received[end:]
        words: list[bytes] = []
        word: bytes | None = None
        quoted = escaped = False
        for code in line:
            character = bytes((code,))
            blank = character.isspace()
            if character == b"\\" and not escaped:
                escaped = True
                continue
            if character == b'"' and not escaped:
                quoted = not quoted
                if quoted and word is None:
                    word = b""
                continue
            if blank and not quoted and not escaped:
                if word is not None:
                    words.append(word)
                word = None
                continue
            word = (word or b"") + character
            escaped = False
        commands.append(words if word is None else [*words, word])
    return commands


@settings(deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)))
def test_asterisk_reads_every_argument_as_it_was_given(arguments: list[str]) -> None:
    try:
        line = command("SET VARIABLE", *arguments)
    except UnsafeArgument:
        assert any(c in argument for argument in arguments for c in "\r\n\0")
        return
    expected = [b"SET", b"VARIABLE", *[argument.encode() for argument in arguments]]
    assert read_by_asterisk(line) == [expected]


@settings(deadline=None)
@given(st.text(alphabet='"\\ \t(){}$,;|&a'))
def test_quoting_of_what_is_special(argument: str) -> None:
    line = exec_("Dial", argument)
    assert read_by_asterisk(line) == [[b"EXEC", b"Dial", argument.encode()]]


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\ud800"])
def test_arguments_that_cannot_be_sent(character: str) -> None:
    with pytest.raises(UnsafeArgument):
        exec_("Dial", f"PJSIP/1{character}EXEC System rm")
    with pytest.raises(UnsafeArgument):
        set_variable("X", character)


def test_a_command_asterisk_would_cut_in_two() -> None:
    room = COMMAND_BYTES - len(command("NOOP", ""))
    longest = command("NOOP", "x" * room)
    assert len(longest) == 8191
    assert len(read_by_asterisk(longest)) == 1
    for argument in ("x" * (room + 1), "x" * (room - 1) + "é", '"' * (room // 2 + 1)):
        with pytest.raises(UnsafeArgument, match="Asterisk reads 8191"):
            command("NOOP", argument)


def test_more_words_than_asterisk_reads() -> None:
    assert len(read_by_asterisk(command("NOOP", *["x"] * 126))[0]) == COMMAND_WORDS
    with pytest.raises(UnsafeArgument, match="127 words"):
        command("NOOP", *["x"] * 127)


@pytest.mark.parametrize("verb", ["", "exec", "EXEC Dial", "EXEC\n", "NOOP ", 'A"B', "FAILURE"])
def test_what_is_no_verb(verb: str) -> None:
    with pytest.raises(UnsafeArgument):
        command(verb)


def test_the_lines_sent() -> None:
    assert exec_("Answer") == b'EXEC "Answer" ""\n'
    assert exec_("Dial", 'a"b\\') == b'EXEC "Dial" "a\\"b\\\\"\n'
    assert set_variable("__X", "1") == b'SET VARIABLE "__X" "1"\n'
    assert set_variable("CALLERID(name)", "Zoë") == 'SET VARIABLE "CALLERID(name)" "Zoë"\n'.encode()
    assert get_full_variable("FAXOPT(pages)") == b'GET FULL VARIABLE "${FAXOPT(pages)}"\n'
    cause = get_full_variable("HANGUPCAUSE(DAHDI/i1/*21#-1f,tech)")
    assert cause == b'GET FULL VARIABLE "${HANGUPCAUSE(DAHDI/i1/*21#-1f,tech)}"\n'
    assert SEPARATOR.encode() not in bytes(get_full_variable("DIALSTATUS"))


@pytest.mark.parametrize("name", ["", "A}${B", "${A}", "A B", "A(${B})", "A(B)C", "1", "é", "A\n"])
def test_what_is_no_name_of_a_variable(name: str) -> None:
    with pytest.raises(UnsafeArgument):
        get_full_variable(name)
    with pytest.raises(UnsafeArgument):
        set_variable(name, "x")


def test_no_variable_named() -> None:
    with pytest.raises(UnsafeArgument):
        get_full_variable()
