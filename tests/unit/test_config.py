from __future__ import annotations

import copy
import json
import pickle
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from umpack.config import ConfigProblems, Configuration, Severity, describe, load, parse, schema
from umpack.config.problems import Problem, nearest
from umpack.config.values import compressed, duration, ranges, seconds, slots_in
from umpack.core.causes import CAUSE_VERDICTS, Blame, Elsewhere
from umpack.core.pack import PackId, Strategy
from umpack.core.trunk import PbxId, TrunkId, TrunkKind

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "config"
ETC = sorted((ROOT / "etc").glob("*.yaml"))
BAD = sorted((DATA / "bad").glob("*.yaml"))
GOOD = sorted((DATA / "good").glob("*.yaml"))

EXAMPLE = (DATA / "good" / "issue-example.yaml").read_text(encoding="utf-8")
BODY = """
trunks:
  um1: {kind: sip, endpoint: um1, channels: 1}
packs:
  um: {members: [um1]}
"""

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigProblems) as caught:
        parse(text, "test.yaml")
    return caught.value.problems


def with_ami(ami: str) -> str:
    return f"pbx: {{main: {{ami: {ami}}}}}{BODY}"


# Files


def test_there_are_enough_bad_files() -> None:
    assert len(BAD) >= 40


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_says_exactly(path: Path) -> None:
    with pytest.raises(ConfigProblems) as caught:
        load(path)
    said = str(caught.value).replace(str(path), path.name)
    assert said + "\n" == path.with_suffix(".txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_file_loads(path: Path) -> None:
    assert load(path).warnings == ()


@pytest.mark.parametrize("path", ETC, ids=lambda path: path.stem)
def test_delivered_file_loads_without_warnings(path: Path) -> None:
    assert load(path).warnings == ()
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=umpack.schema.json"


def test_the_commented_defaults_of_the_delivered_file_are_the_defaults() -> None:
    lines = (ROOT / "etc" / "umpack.yaml").read_text(encoding="utf-8").splitlines()
    wanted = ("# defaults:", "# control:", "# journal:", "# log:", "# drain:")
    said = [line[2:] for line in lines if line.startswith(wanted)]
    assert len(said) == len(wanted)
    plain = load(ROOT / "etc" / "umpack.yaml")
    spelled = parse("\n".join([*lines, *said]), plain.name, directory=ROOT / "etc")
    assert spelled == plain


def test_the_schema_file_is_current() -> None:
    file = ROOT / "etc" / "umpack.schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(schema()))


def test_schema_describes_every_key() -> None:
    whole = json.loads(json.dumps(schema()))
    tables = [whole, *whole["$defs"].values()]
    keys = [(t["title"], k, v) for t in tables for k, v in t.get("properties", {}).items()]
    assert len(keys) > 40
    assert [f"{title}.{key}" for title, key, value in keys if "description" not in value] == []
    assert all(table.get("additionalProperties") is False for table in tables)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblems, match=r"none\.yaml:1: cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigProblems, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    with file.open("wb") as out:
        out.truncate(9 * 1024 * 1024)
    with pytest.raises(ConfigProblems, match="is larger than 8 MiB"):
        load(file)


def test_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_text(EXAMPLE, encoding="utf-8-sig")
    assert load(file).site == parse(EXAMPLE, "x").site


# What a good file means


def test_the_example_of_the_issue() -> None:
    configuration = parse(EXAMPLE, "example.yaml")
    site = configuration.site
    line1, um1 = site.trunks[TrunkId("line1")], site.trunks[TrunkId("um1")]
    assert line1.kind is TrunkKind.S2M
    assert line1.slots == (*range(1, 16), *range(17, 32))
    assert um1.slots == tuple(range(1, 31))
    assert um1.endpoint == "um1"
    um = site.packs[PackId("um")]
    expected = [f"um1:{n}" for n in range(1, 31)] + [f"line1:{n}" for n in (*range(1, 16), 17)]
    assert list(um.channels) == expected
    assert um.strategy is Strategy.CYCLIC
    assert (um.answer_within, um.setup_budget, um.overflow) == (1.0, 30.0, ("spare",))
    assert [(r.called.text, r.pack, r.pbx) for r in site.routes] == [
        ("49302000XXX", "um", "main"),
        ("*", "um", "main"),
    ]
    pbx = configuration.pbxs[PbxId("main")]
    assert (pbx.host, pbx.port, pbx.user) == ("127.0.0.1", 5038, "umpack")
    assert pbx.secret.get_secret_value() == "umpack"
    assert str(pbx.listen) == "127.0.0.1:4573"


def test_every_key() -> None:
    configuration = load(DATA / "good" / "every-key.yaml")
    site = configuration.site
    line1 = site.trunks[TrunkId("line1")]
    assert line1.slots == (*range(1, 16), 17, 18, 19, 20)
    assert line1.number(1) == 32
    um = site.packs[PackId("um")]
    interleaved = "um1:1 um2:1 line1:1 um1:2 line1:2 um1:3 line1:3 line1:15 line1:17"  # not 16
    assert um.channels == tuple(reversed(interleaved.split()))
    assert (um.answer_within, um.setup_budget, um.refusal_cause) == (0.5, 12.0, 42)
    assert site.packs[PackId("spare")].answer_within == 2.0
    assert site.routes[0].callers[0].text == "+49*"
    assert site.causes.causes[27].blame is Blame.TRUNK
    assert configuration.node == "um-1"
    assert configuration.control.socket == DATA / "good" / "run/control.sock"
    assert configuration.log.file == Path("/tmp/umpack.log")
    assert configuration.journal.keep == 86400
    assert configuration.drain_deadline == 3600
    pbx = configuration.pbxs[PbxId("main")]
    assert (pbx.host, pbx.secret.get_secret_value()) == ("::1", "from-a-file")
    assert (str(pbx.listen), str(pbx.reach)) == ("0.0.0.0:4573", "[2001:db8::1]:4573")


def test_first_channels_are_counted_from_the_lower_spans() -> None:
    trunks = load(DATA / "good" / "span-gaps.yaml").site.trunks
    # Span 1 is unknown and taken as another S2M; span 7 follows the stated start of span 6.
    firsts = {str(id_): trunk.first_number for id_, trunk in trunks.items()}
    assert firsts == {"a": 32, "b": 94, "c": 100, "d": 131}


def test_bare_no_is_a_word_where_no_is_one() -> None:
    causes = load(DATA / "good" / "yaml-no.yaml").site.causes
    assert causes.causes[34].elsewhere is Elsewhere.NO
    assert causes.causes[70].elsewhere is Elsewhere.TRUNK
    assert causes.sip[503].elsewhere is Elsewhere.ONCE
    assert causes.sip[503].blame is Blame.TRUNK  # as built in
    assert "yaml-no.yaml:10" in causes.causes[34].source
    assert CAUSE_VERDICTS[34].elsewhere is Elsewhere.TRUNK  # the built-in table is untouched


def test_packs_and_trunks_may_have_rows_of_their_own() -> None:
    site = load(DATA / "good" / "own-rows.yaml").site
    um, lines = site.causes.of("um1", "um"), site.causes.of("line1", "lines")
    # Half rows: `elsewhere` is the pack's, `blame` the trunk's, and 27 of the site lies under both.
    assert (um.causes[27].elsewhere, um.causes[27].blame) == (Elsewhere.NO, Blame.NOBODY)
    assert "trunk um1" in um.causes[27].source
    assert "own-rows.yaml:8" in um.causes[27].source
    assert (lines.causes[27].elsewhere, lines.causes[27].blame) == (Elsewhere.TRUNK, Blame.TRUNK)
    assert "this site" in lines.causes[27].source
    assert um.causes[34].elsewhere is lines.causes[34].elsewhere is Elsewhere.NO
    assert (um.causes[71].elsewhere, 71 in lines.causes) == (Elsewhere.NO, False)
    assert lines.causes[44].elsewhere is Elsewhere.TRUNK
    assert (um.sip[486].elsewhere, um.sip[486].blame) == (Elsewhere.TRUNK, Blame.NOBODY)
    assert "pack um" in site.causes.of("line1", "um").causes[27].source


def test_health_of_the_site_of_a_trunk_and_of_a_pack() -> None:
    configuration = load(DATA / "good" / "own-rows.yaml")
    site = configuration.site
    um1, line1 = (site.policy(TrunkId(id_)) for id_ in ("um1", "line1"))
    assert (um1.eject_base, um1.debounce_loss) == (10.0, 2.5)
    assert (line1.eject_base, line1.debounce_loss) == (20.0, 0.0)
    assert [site.pack_policy(PackId(id_)).panic_share for id_ in ("um", "lines")] == [0.25, 0.75]
    shown = json.loads(describe(configuration))
    assert shown["trunks"]["um1"]["health"] == {"eject_base": 10.0, "debounce_loss": 2.5}
    assert shown["packs"]["um"]["health"] == {"panic_share": 0.25}
    assert shown["packs"]["um"]["causes"]["27"] == {"elsewhere": "no"}
    assert shown["trunks"]["um1"]["causes"]["27"] == {"blame": "nobody"}


def test_a_trunk_need_not_wait_where_the_site_does() -> None:
    text = EXAMPLE.replace("endpoint: um1,", "endpoint: um1, health: {debounce_loss: 0},")
    site = parse(f"{text}\nhealth: {{debounce_loss: 2.5s}}\n", "none.yaml").site
    waits = [site.policy(TrunkId(id_)).debounce_loss for id_ in ("um1", "line1")]
    assert waits == [0.0, 2.5]


def test_warnings_do_not_stop() -> None:
    text = EXAMPLE.replace("answer_within: 1s}", "answer_within: 1s, refusal_cause: 47}")
    text = text.replace("DAHDI/{channel}/", "DAHDI/g1/").replace("49302000XXX", "49302000xxx")
    text = text.replace("packs:", "  um2: {kind: sip, endpoint: um1, channels: 3}\npacks:")
    configuration = parse(text, "w.yaml")
    assert [problem.severity for problem in configuration.warnings] == [Severity.WARNING] * 4
    assert [problem.key for problem in configuration.warnings] == [
        "trunks.line1.dial",
        "trunks.um2.endpoint",
        "packs.spare.refusal_cause",
        "routes[0].called",
    ]
    assert ": warning: " in str(configuration.warnings[0])


def test_default_listener_and_wildcard_reach() -> None:
    default = parse(with_ami("{user: u, secret: s}"), "x").pbxs[PbxId("main")]
    assert str(default.listen) == str(default.reach) == "127.0.0.1:4573"
    wildcard = parse(
        with_ami(
            '{user: u, secret: s}}, b: {agi: {listen: "[::]:1"}, ami: {user: u, secret: s}'
        ).replace("kind: sip", "kind: sip, pbx: b"),
        "x",
    )
    assert str(wildcard.pbxs[PbxId("b")].reach) == "[::1]:1"


def test_port_0_cannot_be_named_in_a_dialplan() -> None:
    text = EXAMPLE.replace("127.0.0.1:4573", "127.0.0.1:0")
    (warning,) = parse(text, "x").warnings
    assert warning.key == "pbx.main.agi.listen"
    assert parse(text.replace('0"}', '0", reach: "localhost:1"}'), "x").warnings == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("routes:", 'log: {file: "a\\tb"}\nroutes:', "log.file: has a character that does not"),
        ('called: "*"', f'called: "{"1" * 129}"', "routes[1].called: is longer than 128"),
        ("host: 127.0.0.1", "host: 5", 'pbx.main.ami.host: must be quoted: "5"'),
        ("user: umpack", f"user: {'u' * 1001}", "pbx.main.ami.user: is longer than 1000"),
        ("strategy: cyclic", "strategy: [cyclic]", "packs.um.strategy: expected text, not a list"),
        ("members: [um1,", "members: [{a: b, c: d},", "members[0]: expected text, not a mapping"),
        ("port: 5038", "port: null", "pbx.main.ami.port: has no value"),
        ("port: 5038", "port: []", "pbx.main.ami.port: expected a whole number, not a list"),
        (
            'agi: {listen: "127.0.0.1:4573"}',
            "agi: 0x1",
            "pbx.main.agi: expected a mapping (key: value), not 0x1",
        ),
    ],
)
def test_one_change_one_message(old: str, new: str, said: str) -> None:
    assert old in EXAMPLE
    assert said in "\n".join(map(str, problems(EXAMPLE.replace(old, new, 1))))


# Secrets


def test_secret_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMPACK_TEST_SECRET", "from-outside")
    configuration = parse(with_ami("{user: u, secret_env: UMPACK_TEST_SECRET}"), "x")
    assert configuration.pbxs[PbxId("main")].secret.get_secret_value() == "from-outside"


def test_secret_from_a_file_beside(tmp_path: Path) -> None:
    (tmp_path / "ami.secret").write_text("from-file\n", encoding="utf-8")
    file = tmp_path / "umpack.yaml"
    file.write_text(with_ami("{user: u, secret_file: ami.secret}"), encoding="utf-8")
    assert load(file).pbxs[PbxId("main")].secret.get_secret_value() == "from-file"
    (tmp_path / "ami.secret").write_bytes(b"\xff")
    with pytest.raises(ConfigProblems, match="no file of UTF-8 text"):
        load(file)


def test_secrets_never_show() -> None:
    configuration = parse(EXAMPLE.replace("secret: umpack", "secret: s3kr1t"), "x")
    for shown in (repr(configuration), str(configuration), describe(configuration)):
        assert "s3kr1t" not in shown
        assert "***" in shown


@pytest.mark.parametrize(
    "ami",
    [
        "{user: u, secret: [hunter2]}",
        "{user: u, secret: {hunter2: hunter2}}",
        "{user: u, secret: 7777777}",
        "{user: u, secret: 07777777}",
        "{user: u, secrt: hunter2}",
        "{user: u, secret: hunter2, secret_env: X}",
        '{user: u, secret: "hunter2\\r\\nAction: x"}',
        '"u:hunter2"',
        "[u, hunter2]",
        "{user: [u], secret: hunter2, port: hunter}",
    ],
)
def test_no_message_shows_a_secret(ami: str) -> None:
    said = "\n".join(map(str, problems(with_ami(ami))))
    assert "hunter2" not in said
    assert "7777777" not in said


def test_describe_tells_what_was_understood() -> None:
    shown = json.loads(describe(load(ROOT / "etc" / "small-office.yaml")))
    assert shown["pbx"]["office"]["ami"]["secret"] == "*" * 3
    assert shown["trunks"]["isdn2"]["first_channel"] == 4
    assert shown["packs"]["outside"]["channels"] == ["isdn2:2", "isdn1:2", "isdn2:1", "isdn1:1"]
    assert [route["called"] for route in shown["routes"]] == ["0900*", "20-29", "0X*"]
    descending = EXAMPLE.replace("strategy: linear", "direction: descending")
    shown = json.loads(describe(parse(descending, "x")))
    assert shown["packs"]["spare"]["channels"] == ["line1:31-18"]


# Problems


def test_all_problems_at_once_by_line() -> None:
    found = problems((DATA / "bad" / "everything-at-once.yaml").read_text(encoding="utf-8"))
    assert len(found) == 9
    assert [problem.line for problem in found] == sorted(problem.line for problem in found)


def test_a_problem_is_one_line_whatever_is_in_the_file() -> None:
    (problem,) = problems('"a\\r\\nb\\e[2J": 1\n' + with_ami("{user: u, secret: s}"))
    assert str(problem).isprintable()


def test_problems_survive_a_pickle() -> None:
    with pytest.raises(ConfigProblems) as caught:
        parse("{}", "x.yaml")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_a_long_chain_of_overflow_is_no_loop_and_no_recursion() -> None:
    text = with_ami("{user: u, secret: s}")
    chain = "".join(f"  p{n}: {{members: [um1], overflow: [p{n + 1}]}}\n" for n in range(3000))
    assert parse(text + chain + "  p3000: {members: [um1]}\n", "x").site.packs
    (loop,) = problems(text + chain + "  p3000: {members: [um1], overflow: [p0]}\n")
    assert loop.message.startswith("runs in a loop: p0 -> p1 -> p2")


def test_nearest() -> None:
    assert nearest("ciclic", ["linear", "cyclic"]) == " (did you mean cyclic?)"
    assert nearest("LINEAR", ["linear"]) == " (did you mean linear?)"
    assert nearest("zebra", ["um1"]) == ""


# Values


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1s", 1), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("90d", 7776000), (3, 3), (0.25, 0.25),
     ("1.5s", 1.5), ("10 s", 10)],
)  # fmt: skip
def test_durations(text: object, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "s", "1", "-1s", "1 sec", "1e3s", "0s", 0, -1, True, None, float("nan"), "١s"]
)
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)


@given(st.floats(min_value=0.001, max_value=1e9))
def test_durations_print_what_reads_back(value: float) -> None:
    assert seconds(duration(value)) == pytest.approx(value, rel=1e-5)


@given(st.sets(st.integers(1, 40), min_size=1))
def test_compressed_ranges_read_back(slots: set[int]) -> None:
    ordered = sorted(slots)
    assert slots_in(ranges(compressed(ordered)), ordered, None) == tuple(ordered)


# Whatever comes, nothing but ConfigProblems


def loads_or_tells(text: str) -> Configuration | None:
    try:
        return parse(text, "any.yaml")
    except ConfigProblems as error:
        told = error
    assert any(problem.severity is Severity.ERROR for problem in told.problems)
    assert all(str(problem).isprintable() for problem in told.problems)
    assert all(problem.line >= 1 for problem in told.problems)
    return None


@relaxed
@given(st.text())
def test_any_text(text: str) -> None:
    loads_or_tells(text)


@relaxed
@given(st.text(alphabet=string.printable + "&*!|>%@`\x85\u2028\ufeff{}[]:,-?\"'", max_size=200))
def test_any_yaml_like_text(text: str) -> None:
    loads_or_tells(text)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.dates(),
    st.sampled_from(["um1", "line1:1-15", "1s", "*", "cyclic", "main", "\ud800", "\0", "34"]),
)  # fmt: skip
WORDS = """
    pbx trunks packs routes causes defaults node control journal log drain ami agi listen user
    secret secret_file secret_env host port kind span endpoint channels dial members overflow
    strategy called caller pack refuse main um1 um sip 34 elsewhere blame socket path keep
"""
words = st.sampled_from(WORDS.split())
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=30,
)


@relaxed
@given(st.dictionaries(words, trees, max_size=8))
def test_any_structure(tree: object) -> None:
    loads_or_tells(yaml.safe_dump(tree, default_flow_style=None))


def _places(tree: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found = [at] if at else []
    listed = dict(enumerate(tree)) if isinstance(tree, list) else {}
    for key, value in (tree if isinstance(tree, dict) else listed).items():
        found += _places(value, (*at, key))
    return found


WHOLE = yaml.safe_load((DATA / "good" / "every-key.yaml").read_text(encoding="utf-8"))
WHOLE["pbx"]["main"]["ami"] = {"user": "u", "secret": "s"}


@relaxed
@given(st.data())
def test_any_change_of_a_good_file(data: st.DataObject) -> None:
    tree = copy.deepcopy(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(_places(tree)))
        holder = tree
        for step in way:
            holder = holder[step]
        change: Callable[[], None] = data.draw(
            st.sampled_from(
                [
                    lambda holder=holder, last=last: holder.pop(last),
                    lambda holder=holder, last=last: holder.__setitem__(last, data.draw(trees)),
                    lambda holder=holder, last=last: holder.__setitem__(
                        last, f"{holder[last]}{data.draw(st.text(max_size=3))}"
                    ),
                ]
            )
        )
        change()
    configuration = loads_or_tells(yaml.safe_dump(tree))
    if configuration is not None:
        json.loads(describe(configuration))


@relaxed
@given(st.integers(0, len(EXAMPLE)), st.integers(0, 8), st.text(max_size=6))
def test_any_cut_and_insertion_in_the_example(at: int, cut: int, inserted: str) -> None:
    loads_or_tells(EXAMPLE[:at] + inserted + EXAMPLE[at + cut :])


def test_what_is_of_no_use_is_warned_of() -> None:
    head = EXAMPLE.partition("routes:")[0]
    (none,) = parse(head, "x").warnings
    assert (none.key, none.message) == ("routes", "there are none: every call will be refused")
    (alone,) = parse(head + 'routes: [{called: "*", pack: spare}]', "x").warnings
    assert (alone.key, alone.message) == ("packs.um", "no route and no overflow leads here")
