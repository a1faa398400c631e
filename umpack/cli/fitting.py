"""Tables on terminals of any width.

Left to itself rich stands a long reason on end in a narrow terminal, a letter a line, and then
leaves out names. Here a table first gives up the air between its columns, then its last column,
which is told below it; what is too wide even then is for the terminal to break.
"""

from __future__ import annotations

from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

READABLE: Final = 24
"""Columns a text needs at least, unless it is shorter."""
_PROSE: Final = frozenset(("detail", "said", "why", "why, and what next"))
"""Columns that need no name to be understood."""
_AMPLE: Final = 1000


def show(out: Console, table: Table) -> None:
    """Print a table, whose last column may be prose and whose first names the row."""
    for column in table.columns:
        texts = [str(cell) for cell in (column.header, *column.cells)]
        longest = max(map(cell_len, texts))
        word = max(cell_len(word) for text in texts for word in text.split() or [""])
        column.min_width = min(longest, max(word, READABLE))
        column.no_wrap = column.min_width == longest
    below: list[Text] = []
    if not _fits(out, table):
        table.box, table.padding = None, (0, 1, 0, 0)
        if not _fits(out, table):
            below = _taken_off(table)
    # Of its own: a console prints nothing wider than itself, and leaves out columns instead.
    Console(file=out.file, width=max(_least(out, table), out.width)).print(table)
    for line in below:
        out.print(line, soft_wrap=True)


def _taken_off(table: Table) -> list[Text]:
    """The last column as lines of their own, where it says something."""
    last = table.columns.pop()
    names = [str(cell) for cell in table.columns[0].cells]
    said = [(name, str(cell)) for name, cell in zip(names, last.cells, strict=True)]
    what = "" if last.header in _PROSE else f"{last.header} "
    return [Text(f"{name}: {what}{words}") for name, words in said if words != "-"]


def _fits(out: Console, table: Table) -> bool:
    return _least(out, table) <= out.width


def _least(out: Console, table: Table) -> int:
    """Columns it needs with no word broken."""
    return Measurement.get(out, out.options.update(max_width=_AMPLE), table).minimum
