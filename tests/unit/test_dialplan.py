from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umpack.config import load, parse
from umpack.core.causes import WIRE_SAFE_CAUSES
from umpack.core.dial import is_safe_number
from umpack.core.routes import Pattern, PatternError
from umpack.core.trunk import PbxId
from umpack.dialplan import dialplan
from umpack.dialplan.caller import ALIVE_WITHIN

ROOT = Path(__file__).parents[2]
GOOD = ROOT / "tests" / "data" / "config" / "good"
FILES = [*sorted((ROOT / "etc").glob("*.yaml")), GOOD / "every-key.yaml", GOOD / "own-rows.yaml"]
HEAD = 'pbx: {main: {ami: {user: u, secret: s}, agi: {listen: "127.0.0.1:4573"}}}\n'
SITE = (
    HEAD
    + """
trunks:
  line1: {kind: s2m, span: 1}
  line-2: {kind: s2m, span: 2}
  um1: {kind: sip, endpoint: um1, channels: 30}
packs:
  h: {strategy: linear, members: ["line1:14-18", um1], answer_within: 1s, overflow: [rest]}
  rest: {strategy: cyclic, direction: descending, members: ["line-2:1-3"], answer_within: 500ms}
  mixed: {interleave: true, members: ["line1:1-2", "um1:1-2"], refusal_cause: 17}
routes:
  - {called: "49302000XXX", pack: h}
  - {called: "100-199", caller: ["+49*", "12"], pack: mixed}
  - {called: "100-199", refuse: 21}
  - {called: "fax*", pack: rest}
"""
)


@dataclass(frozen=True)
class Step:
    number: str
    label: str
    application: str
    arguments: str


@dataclass
class Context:
    extensions: dict[str, list[Step]] = field(default_factory=dict)


LINE = re.compile(
    r"(?:exten => (?P<name>[^,]+),| same => )(?P<number>1|n)(?:\((?P<label>[a-z]+)\))?,"
    r"(?P<application>[A-Za-z]+)\((?P<arguments>.*)\)"
)


def read(text: str) -> dict[str, Context]:
    """The text as Asterisk's reader takes it: sections, extensions, steps."""
    contexts: dict[str, Context] = {}
    steps: list[Step] | None = None
    context: Context | None = None
    for line in text.splitlines():
        bare = re.sub(r"(?<!\\);.*", "", line).rstrip()
        if not bare:
            continue
        if bare.startswith("["):
            assert bare[1:-1] not in contexts
            context = contexts.setdefault(bare[1:-1], Context())
            steps = None
            continue
        match = LINE.fullmatch(bare)
        assert match is not None, line
        assert context is not None
        if match["name"]:
            assert match["name"] not in context.extensions
            steps = context.extensions.setdefault(match["name"], [])
        assert steps is not None
        assert (match["number"] == "1") == (not steps)
        steps.append(Step(match["number"], match["label"], match["application"], match[5]))
    return contexts


def balanced(text: str) -> bool:
    open_: list[str] = []
    for sign in text:
        if sign in "([{":
            open_.append(sign)
        elif sign in ")]}" and (not open_ or open_.pop() + sign not in ("()", "[]", "{}")):
            return False
    return not open_


def targets(step: Step) -> list[str]:
    if step.application in ("Goto", "Gosub"):
        return [step.arguments]
    if step.application == "GotoIf":
        condition, _, target = step.arguments.rpartition("?")
        assert condition.startswith("$[")
        assert condition.endswith("]")
        return [target]
    return re.findall(r"\?Gosub\((.*)\)$", step.arguments) if step.application == "ExecIf" else []


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def text(request: pytest.FixtureRequest) -> str:
    configuration = load(request.param)
    return dialplan(configuration, next(iter(configuration.pbxs)))


def test_every_jump_arrives(text: str) -> None:
    contexts = read(text)
    jumps = 0
    for context in contexts.values():
        for steps in context.extensions.values():
            labels = [step.label for step in steps if step.label]
            assert len(labels) == len(set(labels))
            for target in (target for step in steps for target in targets(step)):
                jumps += 1
                if "," not in target:
                    assert target in labels, target
                    continue
                there, extension, priority = target.split(",", 2)
                if extension == "${ARG5}":
                    continue
                assert extension in contexts[there].extensions, target
                assert re.fullmatch(r"1(\(.*\))?", priority), target
                if there == "umpack-trunk":
                    judge = priority.removesuffix(")").rpartition(",")[2]
                    assert judge in contexts["umpack-judge"].extensions
    assert jumps > 20


def test_no_extension_runs_off_its_end(text: str) -> None:
    for context in read(text).values():
        for steps in context.extensions.values():
            assert steps[-1].application in {"Goto", "Hangup", "Return"}


def test_nothing_off_the_line_stands_inside_another_expression(text: str) -> None:
    # Asterisk puts values in before it parts a function's text at `):` into call and substring.
    for steps in (s for c in read(text).values() for s in c.extensions.values()):
        for step in steps:
            left = step.arguments.replace("UMPACK_CALLED=${EXTEN}", "")
            left = re.sub(r"\$\{REPLACE\(CALLERID\((num|name|dnid|rdnis)\),[^,{}]*\)\}", "", left)
            left = re.sub(r"\$\{REPLACE\(CALLERID\(\w+\),[^{}]*,\\\\x01\)\}", "", left)
            left = re.sub(r"^CALLERID\((num|name|dnid|rdnis)\)=", "", left)
            # Read for caller filters only, after the check, and what comes out is filtered.
            left = re.sub(r"^UMPACK_CALLER=\$\{FILTER\([^,]+,\$\{CALLERID\(num\)\}\)\}$", "", left)
            assert "EXTEN" not in left, step
            assert "CALLERID" not in left, step


def test_what_may_break_lines_is_met_before_the_agi_step(text: str) -> None:
    contexts = read(text)
    for steps in contexts["umpack-in"].extensions.values():
        assert [step.application for step in steps] == ["Set", "Gosub", "GotoIf", "AGI", "Goto"]
        assert steps[1].arguments == "umpack-check,s,1()"
    check = contexts["umpack-check"].extensions["s"]
    asked = next(i for i, step in enumerate(check) if step.application == "AGI")
    assert asked > max(i for i, step in enumerate(check) if "CALLERID" in step.arguments)
    (safe,) = re.findall(r"REPLACE\(UMPACK_CALLED,(.*)\)\}", check[0].arguments)
    assert all(is_safe_number(sign) for sign in safe)
    assert {chr(c) for c in range(128) if is_safe_number(chr(c))} == set(safe)
    assert check[1].arguments == "$[${FIELDQTY(UMPACK_REST,x)} > 0]?invalid"
    cleaned = {step.arguments.partition("=")[0]: step.arguments for step in check}
    for field_ in ("num", "name", "dnid", "rdnis"):
        codes = re.findall(r"\\\\x([0-9a-f]{2})", cleaned[f"CALLERID({field_})"])
        assert {int(code, 16) for code in codes} == {*range(1, 32), 127}


def test_nobody_hangs_up_but_the_end(text: str) -> None:
    hangups = [
        (name, step.arguments)
        for name, context in read(text).items()
        for steps in context.extensions.values()
        for step in steps
        if step.application == "Hangup"
    ]
    with_cause = [name for name, cause in hangups if cause]
    assert with_cause == ["umpack-end"]
    end = read(text)["umpack-end"].extensions["s"]
    (wire_safe,) = re.findall(r"\^\(([0-9|]+)\)\$", end[2].arguments)
    assert {int(cause) for cause in wire_safe.split("|")} == WIRE_SAFE_CAUSES
    assert [step.arguments for step in end[3:]] == [
        "UMPACK_CAUSE=34",
        "${FILTER(0-9,${UMPACK_CAUSE})}",
    ]


def test_dial_strings_hold_filtered_numbers_only(text: str) -> None:
    dials = [
        step.arguments
        for steps in read(text)["umpack-trunk"].extensions.values()
        for step in steps
        if step.application == "Dial"
    ]
    services = text.count("\n; service ")
    assert dials or services == len(read(text)["umpack-trunk"].extensions)
    for arguments in dials:
        variables = set(re.findall(r"\$\{([^}]*)\}", arguments))
        assert variables <= {
            "UMPACK_CALLED", "UMPACK_DIGITS", "UMPACK_NUMBER", "UMPACK_SLOT", "within",
        }  # fmt: skip
        assert arguments.count(",") == 1
        assert "&" not in arguments


def test_variables_are_set_before_they_are_read(text: str) -> None:
    known = set(re.findall(r"Set\((?:LOCAL\()?(\w+)\)?=", text))
    for several in re.findall(r"MSet\((.*)\)$", text, re.MULTILINE):
        known |= set(re.findall(r"(?:^|,)(\w+)=", several))
    known |= {"EXTEN", "EPOCH", "AGISTATUS", "DIALSTATUS", "HANGUPCAUSE", "GOSUB_RETVAL"}
    known |= {"ARG1", "ARG2", "ARG3", "ARG4", "ARG5"}
    known |= {"FAXSTATUS", "FAXERROR", "FAXPAGES", "FAXBITRATE", "FAXMODE"}
    assert set(re.findall(r"\$\{(\w+)(?::\d+)?\}", text)) <= known


def test_lines_are_short_and_balanced(text: str) -> None:
    for steps in (s for c in read(text).values() for s in c.extensions.values()):
        for step in steps:
            assert balanced(step.arguments), step
            assert len(step.arguments) < 1500


def test_one_agi_step_and_what_follows_it() -> None:
    contexts = read(dialplan(parse(SITE, "x"), PbxId("main")))
    for steps in contexts["umpack-in"].extensions.values():
        agi = [step.arguments for step in steps if step.application == "AGI"]
        assert agi == ["agi://127.0.0.1:4573/umpack"]
        assert steps[-1].arguments == "umpack-after,s,1"
    after = contexts["umpack-after"].extensions["s"]
    order = [step.arguments for step in after]
    decided = order.index('$["${UMPACK_CAUSE}" != ""]?umpack-end,s,1')
    hung_up = order.index('$["${AGISTATUS}" = "HANGUP"]?over')
    answered = order.index('$["${CHANNEL(state)}" = "Up" & "${UMPACK_UP}" != "Up"]?over')
    routed = next(i for i, text in enumerate(order) if "umpack-pack" in text)
    assert decided < hung_up < answered < routed
    for pack in contexts["umpack-pack"].extensions.values():
        order = [step.arguments for step in pack]
        judged = order.index('$["${DIALSTATUS}" != ""]?Gosub(umpack-judge,s,1())')
        # What the judge needs to know is set before, and the hunt begins behind it.
        assert {text.partition("=")[0] for text in order[:judged]} == {
            "UMPACK_REFUSAL", "UMPACK_BUDGET", "UMPACK_ONCE",
        }  # fmt: skip
        assert any(text.startswith("umpack-trunk") for text in order[judged:])
    invalid = next(step for step in after if step.label == "invalid")
    assert (invalid.application, invalid.arguments) == ("Set", "UMPACK_CAUSE=28")


def test_entrances_are_those_of_the_routes() -> None:
    contexts = read(dialplan(parse(SITE, "x"), PbxId("main")))
    assert set(contexts["umpack-in"].extensions) == {
        "_[0-9]", "_[0-9].", "_[f][a][x]", "_[f][a][x].",
    }  # fmt: skip
    everything = SITE + '  - {called: "*", pack: h}\n'
    contexts = read(dialplan(parse(everything, "x"), PbxId("main")))
    assert {"_[0-9#*+]", "_[0-9#*+].", "s"} <= set(contexts["umpack-in"].extensions)


def test_a_hang_up_is_no_call() -> None:
    routes = "".join(f'  - {{called: "{sign}*", pack: h}}\n' for sign in "hitT")
    routes += '  - {called: "h", pack: h}\n  - {called: "[2-3]", pack: h}\n'
    contexts = read(dialplan(parse(SITE + routes, "x"), PbxId("main")))
    entrances = set(contexts["umpack-in"].extensions)
    assert {"_[h].", "_[i].", "_[t].", "_[T]."} <= entrances
    assert not {"_[h]", "_[i]", "_[t]", "_[T]", "h", "_.", "_X."} & entrances


def test_hunting_follows_the_order_of_the_pack() -> None:
    contexts = read(dialplan(parse(SITE, "x"), PbxId("main")))
    h, rest, mixed = (contexts["umpack-pack"].extensions[f"p{n}"] for n in (1, 2, 3))
    runs = [s.arguments for s in h if s.arguments.startswith("umpack-trunk")]
    orders = [s.arguments for s in h if s.arguments.startswith("umpack-order")]
    assert orders == ["umpack-order,s,1(h)", "umpack-order,s,1(rest)"]
    overflow = "umpack-trunk,t2,1(0,3,3,-1,s)"
    assert runs == [
        "umpack-trunk,t1,1(0,2,14,1,s)",
        "umpack-trunk,t1,1(2,2,17,1,s)",
        "umpack-trunk,t3,1(4,30,1,1,s)",
        overflow,
        overflow,
    ]
    steps = [step.arguments for step in rest]
    begin = steps.index("umpack-start,p2,1()")
    assert steps[begin - 1 : begin + 7] == [
        "UMPACK_WITHIN=0.500",
        "umpack-start,p2,1()",
        "UMPACK_FROM=${UMPACK_START}",
        "UMPACK_TO=3",
        overflow,
        "UMPACK_FROM=0",
        "UMPACK_TO=${UMPACK_START}",
        overflow,
    ]
    assert [s.arguments for s in mixed if s.arguments.startswith("umpack-trunk")] == [
        "umpack-trunk,t1,1(0,1,1,1,s)",
        "umpack-trunk,t3,1(1,1,1,1,s)",
        "umpack-trunk,t1,1(2,1,2,1,s)",
        "umpack-trunk,t3,1(3,1,2,1,s)",
    ]
    assert "UMPACK_REFUSAL=17" in [step.arguments for step in mixed]
    assert mixed[-2].arguments == "UMPACK_CAUSE=${UMPACK_REFUSAL}"


def test_umpack_is_asked_first_whether_it_lives() -> None:
    contexts = read(dialplan(parse(SITE, "x"), PbxId("main")))
    check, silent = (contexts["umpack-check"].extensions[name] for name in ("s", "T"))
    steps = [step.arguments for step in check]
    ask = steps.index("agi://127.0.0.1:4573/alive")
    assert steps[ask - 2 : ask + 3] == [
        f"TIMEOUT(absolute)={ALIVE_WITHIN:g}",
        "AGIEXITONHANGUP=yes",
        "agi://127.0.0.1:4573/alive",
        "TIMEOUT(absolute)=${UMPACK_LIMIT}",
        "AGIEXITONHANGUP=",
    ]
    # The step that serves the call must not end with its caller.
    assert silent[0].arguments == "AGIEXITONHANGUP="
    returns = [step.arguments for step in (*check, *silent) if step.application == "Return"]
    assert returns == ["alive", "away", "away"]
    for entrance in contexts["umpack-in"].extensions.values():
        assert entrance[2].arguments == '$["${GOSUB_RETVAL}" != "alive"]?after'


def test_no_text_of_a_callers_is_in_a_step_that_parts_at_commas(text: str) -> None:
    for context in read(text).values():
        for steps in context.extensions.values():
            for step in steps:
                if step.application == "MSet":
                    assert not re.search(r"EXTEN|CALLERID|UMPACK_CALLE|UMPACK_REST", step.arguments)
                    used = re.findall(r"\$\{(\w+)", step.arguments)
                    assert set(used) <= {"STRFTIME", "CHANNEL"}


def test_what_the_database_holds_is_read_by_name_until_it_is_known(text: str) -> None:
    contexts = read(text)
    read_from = [
        step.arguments
        for context in contexts.values()
        for steps in context.extensions.values()
        for step in steps
        if "${DB(" in step.arguments
    ]
    for arguments in read_from:
        assert re.fullmatch(r"UMPACK_(ORDER|START)=\$\{DB\(umpack/\w+/[\w${}-]+\)\}", arguments)
    routines = [contexts["umpack-order"].extensions["s"]]
    starts = contexts.get("umpack-start")
    routines += starts.extensions.values() if starts else []
    for steps in routines:
        checked = next(i for i, step in enumerate(steps) if "REST,x)} > 0" in step.arguments)
        for step in steps[: checked + 1]:
            assert "${UMPACK_ORDER}" not in step.arguments
            assert "${UMPACK_START}" not in step.arguments
        assert steps[checked].arguments.rpartition("?")[2] in ("done", "any")


def test_single_channels_are_left_out_where_each_is_dialled_by_itself() -> None:
    trunks = read(dialplan(parse(SITE, "x"), PbxId("main")))["umpack-trunk"].extensions
    skip = '$["${UMPACK_OUT_line-2.${UMPACK_SLOT}}" = "1"]?next'
    line2 = [step.arguments for step in trunks["t2"]]
    assert line2.index("at=$[${at} + 1]") < line2.index(skip)
    assert not any("UMPACK_OUT_um1." in step.arguments for step in trunks["t3"])


def test_a_start_knows_its_trunk() -> None:
    contexts = read(dialplan(parse(SITE.replace("strategy: linear", "strategy: cyclic"), "x"),
                             PbxId("main")))  # fmt: skip
    assert [step.arguments for step in contexts["umpack-place"].extensions["p1"]] == [
        "$[${UMPACK_START} < 2]?Return(${UMPACK_OUT_line1})",
        "$[${UMPACK_START} < 4]?Return(${UMPACK_OUT_line1})",
        "${UMPACK_OUT_um1}",
    ]
    start = [step.arguments for step in contexts["umpack-start"].extensions["p1"]]
    assert "DB(umpack/start/h)=$[(${UMPACK_START} + 1) % 34]" in start
    assert start.count("UMPACK_START=${RAND(0,33)}") == 2


def test_dahdi_numbers_count_from_the_span() -> None:
    contexts = read(dialplan(parse(SITE, "x"), PbxId("main")))
    line2 = [step.arguments for step in contexts["umpack-trunk"].extensions["t2"]]
    assert "UMPACK_NUMBER=$[${UMPACK_SLOT} + 31]" in line2
    assert "DAHDI/${UMPACK_NUMBER}/${UMPACK_DIGITS},${within}" in line2
    um1 = [step.arguments for step in contexts["umpack-trunk"].extensions["t3"]]
    assert "PJSIP/${UMPACK_CALLED}@um1,${within}" in um1
    # One Dial for all channels of the peer: after it the trunk is done with.
    assert um1.index("UMPACK_OUT_um1=1") == um1.index("umpack-judge,${ARG5},1(trunk)") + 1


def test_a_semicolon_in_a_dial_string_is_no_comment() -> None:
    configuration = load(GOOD / "every-key.yaml")
    text = dialplan(configuration, PbxId("main"))
    assert r"Dial(PJSIP/um2/sip:${UMPACK_CALLED}@[::1]:5060\;transport=tcp,${within})" in text


def sent(text: str, judge: str = "s") -> dict[str, set[str]]:
    """Where a judge's words lead: the label each list of words jumps to."""
    found: dict[str, set[str]] = {}
    for step in read(text)["umpack-judge"].extensions[judge]:
        wanted = r"\^\(([a-z0-9|]+)\)\$\" \${UMPACK_WORD}\)} = 1\]\?(\w+)"
        for words, label in re.findall(wanted, step.arguments):
            found[label] = set(words.split("|"))
    return found


def test_a_busy_subscriber_ends_the_hunt_and_an_occupied_channel_does_not() -> None:
    text = dialplan(parse(SITE, "x"), PbxId("main"))
    judge = read(text)["umpack-judge"].extensions["s"]
    order = [step.arguments for step in judge]
    own = order.index("$[${LEN(${HANGUPCAUSE_KEYS()})} = 0]?own")
    busy = order.index('$["${DIALSTATUS}" = "BUSY"]?Set(UMPACK_WORD=c17)')
    assert order.index('$["${DIALSTATUS}" = "ANSWER"]?over') < own < busy
    assert "c17" in sent(text)["call"]
    assert next(step for step in judge if step.label == "busy").arguments == "UMPACK_CAUSE=17"


def test_the_verdicts_are_those_of_the_site() -> None:
    plain = sent(dialplan(parse(SITE, "x"), PbxId("main")))
    assert {"c1", "c17", "c28", "s404", "s486"} <= plain["call"]
    assert {"c0", "c34", "c41", "s408", "s503"} <= plain["trunk"]
    assert plain["channel"] == {"c6", "c44", "c82"}
    rows = "causes: {34: {elsewhere: no}, sip 486: {elsewhere: trunk}}\n"
    own = dialplan(parse(SITE + rows, "x"), PbxId("main"))
    assert {"c34", "s486"} & sent(own)["call"] == {"c34"}
    assert {"c34", "s486"} & sent(own)["trunk"] == {"s486"}


def test_packs_and_trunks_with_rows_of_their_own_have_their_own_judge() -> None:
    site = SITE.replace("mixed: {", "mixed: {causes: {17: {elsewhere: trunk}}, ")
    site = site.replace("span: 1}", "span: 1, causes: {44: {elsewhere: no}, 41: {blame: call}}}")
    text = dialplan(parse(site, "x"), PbxId("main"))
    packs = read(text)["umpack-pack"].extensions
    judges = {
        name: {
            step.arguments.split(",")[1]: step.arguments.removesuffix(")").rpartition(",")[2]
            for step in packs[name]
            if step.arguments.startswith("umpack-trunk")
        }
        for name in packs
    }
    assert judges["p1"].keys() == {"t1", "t2", "t3"}
    plain, line1 = judges["p1"]["t3"], judges["p1"]["t1"]
    mixed, mixed_line1 = judges["p3"]["t3"], judges["p3"]["t1"]
    assert plain == judges["p1"]["t2"] == judges["p2"]["t2"] == "s"
    assert len({plain, line1, mixed, mixed_line1}) == 4
    assert len(read(text)["umpack-judge"].extensions) == 4
    for judge, ends in ((plain, "c17"), (line1, "c17 c44"), (mixed, ""), (mixed_line1, "c44")):
        assert sent(text, judge)["call"] & {"c17", "c44"} == set(ends.split())
    # What umpack had begun is judged by the pack: nobody knows the trunk any more.
    assert any(f"umpack-judge,{mixed},1()" in step.arguments for step in packs["p3"])


def test_an_attempt_gets_what_is_left_of_the_setup_budget(text: str) -> None:
    for steps in read(text)["umpack-trunk"].extensions.values():
        order = [step.arguments for step in steps]
        if "HangupCauseClear" not in [step.application for step in steps]:
            continue  # a service
        dial = next(i for i, step in enumerate(steps) if step.application == "Dial")
        assert order[dial - 4 : dial - 1] == [
            "LOCAL(within)=$[${UMPACK_SINCE} + ${UMPACK_BUDGET} - ${STRFTIME(,,%s.%3q)}]",
            "$[${within} < 0.1]?late",
            "$[${within} > ${UMPACK_WITHIN}]?Set(within=${UMPACK_WITHIN})",
        ]
        assert order[dial].endswith(",${within}")


def test_each_pbx_has_its_own() -> None:
    configuration = load(ROOT / "etc" / "two-sites.yaml")
    north, south = (dialplan(configuration, PbxId(id_)) for id_ in ("north", "south"))
    assert "um-north" in north
    assert "um-north" not in south
    assert "agi://10.1.0.1:4574" in south
    assert "r1" in read(north)["umpack-after"].extensions
    with pytest.raises(KeyError):
        dialplan(configuration, PbxId("east"))


# Routes in Asterisk's words mean what they mean to umpack.

TEST = re.compile(r'\$\{REGEX\("([^"]*)" \$\{(\w+)\}\)\} = 1')
COMPARISON = re.compile(r'"\$\{(\w+):(\d+)\}" (>=|<=) "(\d+)"')


def holds(condition: str, variables: dict[str, str]) -> bool:
    for part in condition.split(" & "):
        if match := TEST.fullmatch(part):
            if re.search(match[1].replace("[[]", r"\["), variables[match[2]]) is None:
                return False
            continue
        match = COMPARISON.fullmatch(part)
        assert match is not None, part
        tail = variables[match[1]][int(match[2]) :]
        if not (tail >= match[4] if match[3] == ">=" else tail <= match[4]):
            return False
    return True


signs = "0123456789XZN+#_a"
pattern_texts = st.one_of(
    st.text(signs, min_size=1, max_size=6),
    st.text(signs, max_size=5).map(lambda text: text + "*"),
    st.tuples(st.text("0123456789XZN", max_size=3), st.sampled_from(["[2-57]", "[0-9]", "[3]"]))
    .map("".join),
    st.tuples(st.integers(0, 999), st.integers(0, 999)).map(
        lambda pair: f"{min(pair):03}-{max(pair):03}"
    ),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(pattern_texts, st.lists(st.text("0123456789+#_aX", min_size=1, max_size=6), max_size=20))
def test_patterns_match_alike(text: str, numbers: list[str]) -> None:
    try:
        pattern = Pattern.parse(text)
    except PatternError:
        return
    if text.startswith("_"):
        return  # refused by the configuration
    site = HEAD + (
        "trunks: {um1: {kind: sip, endpoint: um1, channels: 1}}\n"
        "packs: {um: {members: [um1]}}\n"
        f'routes: [{{called: "*", caller: "{text}", pack: um}}, {{called: "{text}", pack: um}}]\n'
        if text != "*"
        else "trunks: {um1: {kind: sip, endpoint: um1, channels: 1}}\n"
        "packs: {um: {members: [um1]}}\n"
        'routes: [{called: "*", pack: um}]\n'
    )
    after = read(dialplan(parse(site, "x"), PbxId("main")))["umpack-after"].extensions["s"]
    conditions = [
        step.arguments[2:].rpartition("]?")[0] for step in after if "REGEX" in step.arguments
    ]
    (called,) = [condition for condition in conditions if "CALLER" not in condition]
    callers = [condition for condition in conditions if "CALLER" in condition]
    near = [text.replace("X", "5").replace("Z", "1").replace("N", "9").rstrip("*"), text[:3]]
    for number in [*numbers, *near]:
        if number:
            expected = pattern.matches(number)
            assert holds(called, {"UMPACK_CALLED": number}) is expected
            for caller in callers:
                both = {"UMPACK_CALLED": "1", "UMPACK_CALLER": number}
                assert holds(caller, both) is expected
