from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sites import MAIN, route
from tests.unit.core.worlds import unshrunk
from umpack.core import routes as routes_module
from umpack.core.pack import PackId
from umpack.core.routes import Pattern, PatternError, Route, Routes
from umpack.core.trunk import PbxId

relaxed = settings(deadline=None)
BRANCH = PbxId("branch")


def pack_for(table: Routes, called: str, caller: str = "", pbx: PbxId = MAIN) -> str | None:
    found = table.match(pbx, called, caller)
    return found.pack if found else None


# -- one pattern ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("100", ["100"], ["10", "1000", "", "100\n"]),
        ("49302000XXX", ["49302000000", "49302000999"], ["4930200012", "493020001234"]),
        ("1Z", ["11", "19"], ["10", "1a"]),
        ("1N", ["12", "19"], ["10", "11"]),
        ("[2-57]0", ["20", "50", "70"], ["10", "60", "80"]),
        ("[13]", ["1", "3"], ["2"]),
        ("4930*", ["4930", "49301", "4930x\ny"], ["493", "5930"]),
        ("*", ["", "anything", "a\nb"], []),
        ("100-199", ["100", "150", "199"], ["099", "200", "1500", "15", "15a"]),
        ("198-203", ["198", "199", "200", "203"], ["197", "204", "2000"]),
        ("+4930-+4932", ["+4930", "+4931", "+4932"], ["+4929", "+4933", "4931", "+49310"]),
        ("100-100", ["100"], ["101", "099"]),
        ("+49X", ["+491"], ["491", "+49"]),
        ("alice", ["alice"], ["Alice", "alic"]),
        ("a.b_c#", ["a.b_c#"], ["axb_c#"]),
        ("XZ[1-2]", ["011", "992"], ["001", "993"]),
        ("1[0-9]", ["10", "19"], ["1x", "1\u0661"]),
        ("1X", ["10"], ["1\u0661"]),
    ],
)
def test_a_pattern_fits_what_it_says(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    parsed = Pattern.parse(pattern)
    assert [number for number in fits if not parsed.matches(number)] == []
    assert [number for number in fits_not if parsed.matches(number)] == []


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("", "empty"),
        ("1 0", "position 2"),
        ("12&3", "position 3"),
        ("*1", "position 1"),
        ("1**", "position 2"),
        ("[]1", "position 1"),
        ("[12", "position 1"),
        ("1]", "position 2"),
        ("[5-2]", "no set of digits"),
        ("[1-]", "no set of digits"),
        ("[-]", "no set of digits"),
        ("[1-3-5]", "no set of digits"),
        ("[a]", "position 1"),
        ("199-100", "equal length"),
        ("10-100", "equal length"),
        ("+10-110", "equal length"),
        ("110-+10", "equal length"),
        ("100-", "position 4"),
        ("(1|2)", "position 1"),
        ("1\n", "position 2"),
    ],
)
def test_a_pattern_that_cannot_be_read_says_where(pattern: str, hint: str) -> None:
    with pytest.raises(PatternError, match=hint):
        Pattern.parse(pattern)


@relaxed
@given(st.text(alphabet="0123456789XZN[]-*+#._aF& \n(|)\\", max_size=12), st.text(max_size=12))
def test_any_text_is_a_pattern_or_a_pattern_error(text: str, number: str) -> None:
    try:
        pattern = Pattern.parse(text)
    except PatternError:
        return
    assert pattern.text == text
    if pattern.matches(number):
        assert number.startswith(pattern.prefix)


# -- the most exact one -----------------------------------------------------------------------


def test_the_documented_order() -> None:
    table = Routes(
        [
            route("*", "any"),
            route("49302000XXX", "hundreds"),
            route("4930200012*", "longer"),
            route("49302000123", "exact"),
        ]
    )
    assert pack_for(table, "49302000123") == "exact"
    assert pack_for(table, "49302000124") == "longer"
    assert pack_for(table, "49302000199") == "hundreds"
    assert pack_for(table, "030") == "any"


@pytest.mark.parametrize(
    ("better", "worse", "called"),
    [
        ("12", "12*", "12"),
        ("1[23]", "1X", "12"),
        ("100-199", "1XX", "150"),
        ("1XX", "1*", "150"),
        ("1[3]X", "1X[3]", "133"),
        ("150-159", "100-199", "155"),
        ("140-160", "100-199", "155"),
        ("150-199", "100-150", "150"),
        ("140-149", "140-159", "145"),
        ("+140-+160", "+100-+199", "+155"),
        ("155-155", "150-159", "155"),
        ("0000-8888", "[0-8][0-8][0-8][0-8]*", "1234"),
        ("1[0-8][0-8]", "100-188", "155"),
    ],
)
def test_the_more_exact_one_wins_whatever_the_order_in_the_file(
    better: str, worse: str, called: str
) -> None:
    for order in ([better, worse], [worse, better]):
        assert pack_for(Routes([route(text, text) for text in order]), called) == better


def test_of_equals_the_first_in_the_file_wins() -> None:
    assert pack_for(Routes([route("1X", "first"), route("1X", "second")]), "10") == "first"
    assert pack_for(Routes([route("[12]0", "first"), route("[13]0", "second")]), "10") == "first"


@dataclass(frozen=True)
class Shape:
    """A pattern as structure: what it means without anybody having parsed it."""

    text: str
    places: tuple[frozenset[str], ...]
    open_end: bool = False
    block: tuple[int, int] | None = None

    def fits(self, number: str) -> bool:
        if self.block:
            low, high = self.block
            width = len(self.places)
            return number in {str(n).zfill(width) for n in range(low, high + 1)}
        if len(number) < len(self.places):
            return False
        if len(number) > len(self.places) and not self.open_end:
            return False
        return all(digit in place for digit, place in zip(number, self.places, strict=False))

    @property
    def size(self) -> int:
        """Of a block, how many numbers it has; other patterns count as none, a block of one too."""
        low, high = self.block or (0, 0)
        return high - low + 1 if high > low else 0

    def width(self, place: int) -> int:
        """How many digits may stand there; any rest is wider than all, the end narrower."""
        if place < len(self.places):
            full = self.block is not None and len(self.places[place]) == 10
            return 9 if full else len(self.places[place])
        return 1000 if self.open_end and place == len(self.places) else 0


def beats(one: Shape, other: Shape) -> bool | None:
    """Whether one pattern is more exact than another; `None` for neither. Both fit a number."""
    for place in range(max(len(one.places), len(other.places)) + 1):
        if one.width(place) != other.width(place):
            return one.width(place) < other.width(place)
    if (one.size or other.size) and one.size != other.size:
        return one.size < other.size
    return None


FEW = "0123"
places = st.sampled_from(
    [(d, d) for d in FEW]
    + [("X", "0123456789"), ("Z", "123456789"), ("N", "23456789")]
    + [("[12]", "12"), ("[0-2]", "012"), ("[3]", "3")]
)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    if draw(st.integers(0, 3)) == 0:
        width = draw(st.integers(1, 3))
        low, high = sorted(
            int("".join(draw(st.lists(st.sampled_from(FEW), min_size=width, max_size=width))))
            for _ in range(2)
        )
        first, last = str(low).zfill(width), str(high).zfill(width)
        same = next((i for i in range(width) if first[i] != last[i]), width)
        free = (frozenset("0123456789"),) * (width - same)
        fixed = tuple(frozenset(digit) for digit in first[:same])
        return Shape(f"{first}-{last}", fixed + free, block=(low, high))
    chosen = draw(st.lists(places, max_size=4))
    open_end = draw(st.booleans()) or not chosen
    text = "".join(token for token, _ in chosen) + ("*" if open_end else "")
    return Shape(text, tuple(frozenset(digits) for _, digits in chosen), open_end)


@dataclass(frozen=True)
class Line:
    shape: Shape
    callers: tuple[str, ...]
    pbx: PbxId | None


lines = st.builds(
    Line,
    shapes(),
    st.sampled_from([(), (), ("030*",), ("030*", "040"), ("9X",)]),
    st.sampled_from([MAIN, MAIN, BRANCH, None]),
)
CALLERS = {"0301": ("030*", "030*"), "040": ("040",), "91": ("9X",), "": (), "030": ("030*",)}


def naive_match(file: list[Line], pbx: PbxId, called: str, caller: str) -> int | None:
    best: int | None = None
    for index, line in enumerate(file):
        if line.pbx not in (None, pbx) or not line.shape.fits(called):
            continue
        if line.callers and not set(line.callers) & set(CALLERS[caller]):
            continue
        if best is None:
            best = index
            continue
        better = beats(line.shape, file[best].shape)
        if better or (better is None and line.callers and not file[best].callers):
            best = index
    return best


@settings(unshrunk, max_examples=150)
@given(
    st.lists(lines, max_size=25),
    st.lists(
        st.tuples(
            st.sampled_from([MAIN, BRANCH]),
            st.text(alphabet="01234", max_size=5),
            st.sampled_from(sorted(CALLERS)),
        ),
        min_size=1,
        max_size=10,
    ),
)
def test_agrees_with_a_naive_search(file: list[Line], calls: list[tuple[PbxId, str, str]]) -> None:
    table = Routes(
        route(line.shape.text, str(index), callers=line.callers, pbx=line.pbx)
        for index, line in enumerate(file)
    )
    for pbx, called, caller in [*calls, *calls]:
        expected = naive_match(file, pbx, called, caller)
        found = pack_for(table, called, caller, pbx)
        assert found == (None if expected is None else str(expected)), (called, caller)


# -- callers, exchanges -----------------------------------------------------------------------


def test_a_caller_filter_lets_through_only_its_own_and_falls_to_the_next() -> None:
    table = Routes(
        [
            route("100", "all"),
            route("100", "berlin", callers=["030*", "+4930*"]),
            route("1XX", "rest"),
            route("101", "vip", callers=["0401234"]),
        ]
    )
    assert pack_for(table, "100", "0301") == "berlin"
    assert pack_for(table, "100", "+49301") == "berlin"
    assert pack_for(table, "100", "040") == "all"
    assert pack_for(table, "100", "") == "all"
    assert pack_for(table, "101", "0401234") == "vip"
    assert pack_for(table, "101", "040") == "rest"


def test_two_exchanges_may_have_the_same_numbers() -> None:
    table = Routes([route("100", "here", pbx=MAIN), route("100", "there", pbx=BRANCH)])
    assert pack_for(table, "100", pbx=MAIN) == "here"
    assert pack_for(table, "100", pbx=BRANCH) == "there"
    assert pack_for(table, "100", pbx=PbxId("elsewhere")) is None


def test_a_refusing_route_stands_for_every_exchange() -> None:
    table = Routes([route("0900*", refuse=21, pbx=None), route("*", "um")])
    for pbx in (MAIN, BRANCH):
        found = table.match(pbx, "09001", "")
        assert found is not None
        assert (found.pack, found.refuse) == (None, 21)


def test_nothing_matches_an_empty_table() -> None:
    assert pack_for(Routes(()), "100") is None


# -- size -------------------------------------------------------------------------------------


def test_thousands_of_routes_and_blocks() -> None:
    routes = [route(f"4930{n:05}", f"exact{n}") for n in range(0, 6000, 2)]
    routes += [route(f"4930{n:03}00-4930{n:03}99", f"block{n}") for n in range(100)]
    routes += [route("4930XXXXX", "head")]
    table = Routes(routes)
    assert len(table.routes) == 3101
    assert pack_for(table, "493004242") == "exact4242"
    assert pack_for(table, "493004243") == "block42"
    assert pack_for(table, "493009999") == "block99"
    assert pack_for(table, "493010000") == "head"
    assert pack_for(table, "4930") is None


def test_what_is_remembered_is_bounded_and_always_right() -> None:
    table = Routes([route("1*", "one"), route("*", "any")])
    for n in range(routes_module._MEMORY * 2 + 10):
        assert pack_for(table, str(n)) == ("one" if str(n).startswith("1") else "any")
        assert len(table._remembered) <= routes_module._MEMORY
    assert pack_for(table, "12345") == "one"


@pytest.mark.parametrize(("length", "remembered"), [(64, 1), (65, 0), (5000, 0)])
def test_numbers_longer_than_any_are_routed_but_not_remembered(
    length: int, remembered: int
) -> None:
    table = Routes([route("1*", "one"), route("*", "any")])
    for _ in range(2):
        assert pack_for(table, "1" * length) == "one"
        assert pack_for(table, "1" * length, pbx=BRANCH) is None
    assert len(table._remembered) == 2 * remembered


def test_memory_keeps_callers_and_exchanges_apart() -> None:
    table = Routes(
        [
            Route(Pattern.parse("1"), PackId("main"), pbx=MAIN),
            Route(Pattern.parse("1"), PackId("vip"), None, (Pattern.parse("9"),), MAIN),
            Route(Pattern.parse("1"), PackId("branch"), pbx=BRANCH),
        ]
    )
    for _ in range(2):
        assert pack_for(table, "1", "9") == "vip"
        assert pack_for(table, "1", "8") == "main"
        assert pack_for(table, "1", "9", BRANCH) == "branch"
