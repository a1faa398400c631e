from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umpack.core.errors import ConfigError, PeerFault, PeerGone
from umpack.core.routes import Pattern
from umpack.messages.directory import Attach, Directory, Entry, Mailbox, Mailboxes
from umpack.messages.directory_file import DirectoryFault, DirectoryFile, read_directory
from umpack.messages.letter import Address, LetterError

CSV = """number,addresses,language,attach
4930200012,anna@example.org;bert@example.org,de,both
4930200100-199,it@example.org,,
49302000XX,office@example.org,de,original
"+49*",abroad@example.org,en,pdf
"""
YAML = """
mailboxes:
  - number: 4930200012
    addresses: [anna@example.org, bert@example.org]
    language: de
    attach: both
  - number: "4930200100-199"
    addresses: it@example.org
  - number: 49302000XX
    addresses: [office@example.org]
    language: de
    attach: original
  - number: "+49*"
    addresses: [abroad@example.org]
"""
DEFAULT = Mailbox(Address("fax@example.org"))


def box(name: str) -> Mailbox:
    return Mailbox(Address(f"{name}@example.org"))


def names(found: tuple[Mailbox, ...]) -> list[str]:
    return [mailbox.address.partition("@")[0] for mailbox in found]


class Spoken:
    """A source that answers as it is told."""

    def __init__(self, name: str, known: dict[str, str], *, gone: bool = False) -> None:
        self.name = name
        self.known = known
        self.gone = gone

    async def mailboxes(self, called: str, now: float) -> tuple[Mailbox, ...]:
        if self.gone:
            raise PeerGone("no answer\nfrom it")
        return (box(self.known[called]),) if called in self.known else ()


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("4930200012", ["anna", "bert"]),
        ("4930200013", ["office"]),
        ("4930200100", ["it"]),
        ("4930200199", ["it"]),
        ("4930200200", []),
        ("+4912", ["abroad"]),
        ("", []),
        ("4930200012\r\n", []),
    ],
)
@pytest.mark.parametrize(("name", "text"), [("d.csv", CSV), ("d.yaml", YAML)])
def test_most_exact_entry_answers(
    tmp_path: Path, name: str, text: str, called: str, expected: list[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert names(read_directory(path).mailboxes(called)) == expected


def test_language_and_form_are_kept_or_default(tmp_path: Path) -> None:
    for name, text in (("d.csv", CSV), ("d.yaml", YAML)):
        (tmp_path / name).write_text(text)
        found = read_directory(tmp_path / name, "de", Attach.ORIGINAL)
        anna = found.mailboxes("4930200012")[0]
        assert (anna.language, anna.attach) == ("de", Attach.BOTH)
        assert found.mailboxes("4930200100") == (
            Mailbox(Address("it@example.org"), "de", Attach.ORIGINAL),
        )


def test_spreadsheet_csv_with_semicolons_and_mark(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b"\xef\xbb\xbfNumber;Addresses\r\n# x;y\r\n\r\n0301234;a@example.org\r\n")
    assert names(read_directory(path).mailboxes("0301234")) == ["a"]


def test_same_number_twice_gives_both_once() -> None:
    pattern = Pattern.parse("12")
    directory = Directory(
        [
            Entry(pattern, (box("a"), box("b"))),
            Entry(pattern, (Mailbox(Address("b@EXAMPLE.org")), box("c"))),
        ]
    )
    assert names(directory.mailboxes("12")) == ["a", "b", "c"]
    assert len(directory.entries) == 1


def test_yaml_numbers_are_as_written(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text("mailboxes:\n  - {number: 0301234, addresses: a@example.org}\n")
    assert names(read_directory(path).mailboxes("0301234")) == ["a"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.csv", "", "look at"),
        ("d.csv", "number,addresses\n", "nobody"),
        ("d.csv", "number,mail\n1,a@b.c\n", "columns"),
        ("d.csv", "number,addresses\n1\n", ":2: 1 fields"),
        ("d.csv", "number,addresses\n1,a@b.c\n2,nobody\n", ":3: not a mailbox"),
        ("d.csv", "number,addresses\n1,a@b.c\n2,\n", ":3: 2: no mailbox"),
        ("d.csv", "number,addresses\n1[,a@b.c\n", ":2: "),
        ("d.csv", "number,addresses,attach\n1,a@b.c,gif\n", "attach is one of"),
        ("d.csv", "number,addresses,language\n1,a@b.c,$x\n", "not a language"),
        ("d.csv", 'number,addresses\n"1,a@b.c\n', "not CSV"),
        ("d.yaml", "", "one key"),
        ("d.yaml", "mailboxes: {}\n", "a list"),
        ("d.yaml", "mailboxes:\n  - number: 1\n", ":2: an entry has"),
        ("d.yaml", "mailboxes:\n  - {number: [1, 2], addresses: a@b.c}\n", "one value"),
        ("d.yaml", "mailboxes: [\n", "YAML"),
        ("d.yaml", "mailboxes:\n- {number: 1, number: 2, addresses: a@b.c}\n", "second time"),
    ],
)
def test_mistakes_are_told_with_their_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DirectoryFault, match=message):
        read_directory(path)


@given(st.binary(max_size=300), st.sampled_from([".csv", ".yaml"]))
def test_any_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"noise{suffix}"
    for data in (noise, CSV.encode()[:60] + noise):
        path.write_bytes(data)
        try:
            read_directory(path)
        except DirectoryFault as fault:
            assert str(path) in str(fault)  # noqa: PT017


def write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


async def test_file_is_read_anew_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    write(path, "number,addresses\n1,a@example.org\n")
    file = DirectoryFile(path)
    assert names(await file.mailboxes("1", 0)) == ["a"]
    assert not file.refresh()
    write(path, "number,addresses\n1,b@example.org\n")
    assert names(await file.mailboxes("1", 0)) == ["b"]
    write(path, "number,addresses\n1,nobody\n")
    assert names(await file.mailboxes("1", 0)) == ["b"]
    assert "d.csv:2: not a mailbox" in file.fault
    path.unlink()
    assert names(await file.mailboxes("1", 0)) == ["b"]
    assert "No such file" in file.fault
    write(path, "number,addresses\n1,c@example.org\n")
    assert names(await file.mailboxes("1", 0)) == ["c"]
    assert file.fault == ""


async def test_file_that_never_was_good_leaves_a_doubt(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    file = DirectoryFile(path)
    with pytest.raises(PeerFault, match="No such file"):
        await file.mailboxes("1", 0)
    path.write_text("number,addresses\n1,nobody\n")
    boxes = Mailboxes([file], [DEFAULT])
    found = await boxes.find("1", 0)
    assert (found.mailboxes, found.by) == ((DEFAULT,), "default")
    assert "d.csv:2: not a mailbox" in found.doubt
    path.write_text("number,addresses\n1,a@b.test\n")
    assert (await boxes.find("1", 0)).doubt == ""
    path.write_text("number,addresses\n1,nobody again\n")
    assert (await boxes.find("1", 0)).by == "d.csv"  # the one before stays


async def test_directories_are_asked_in_order() -> None:
    sources = [Spoken("one", {"1": "a"}), Spoken("two", {"1": "b", "2": "b"})]
    boxes = Mailboxes(sources, [DEFAULT])
    assert [(await boxes.find(n, 0)).by for n in "123"] == ["one", "two", "default"]
    assert (await boxes.find("3", 0)).mailboxes == (DEFAULT,)
    assert (await boxes.find("3", 0)).doubt == ""


async def test_number_is_asked_as_signalled_and_by_its_digits() -> None:
    boxes = Mailboxes([Spoken("one", {"4930200012": "a"})], [DEFAULT])
    assert (await boxes.find("4930 2000-12", 0)).by == "one"
    assert (await boxes.find("\r\n\0", 0)).by == "default"
    assert (await boxes.find("1" * 10000, 0)).by == "default"


async def test_directory_that_cannot_answer_is_no_directory_that_does_not_know() -> None:
    boxes = Mailboxes([Spoken("one", {}, gone=True), Spoken("two", {"2": "b"})], [DEFAULT])
    found = await boxes.find("1", 0)
    assert (found.mailboxes, found.by) == ((DEFAULT,), "default")
    assert found.doubt == "one: no answer\\nfrom it"
    assert (await boxes.find("2", 0)).by == "two"


def test_there_is_always_a_default_and_an_address_is_one() -> None:
    with pytest.raises(ConfigError):
        Mailboxes([], [])
    with pytest.raises(ConfigError):
        Entry(Pattern.parse("1"), ())
    with pytest.raises(LetterError):
        Mailbox(Address("nobody"))
