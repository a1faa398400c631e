"""What umpack has left in the PBX's database (AstDB) for the time without it.

`umpack/order/PACK` says which trunks and channels to leave out or to try last, `umpack/start/PACK`
where a cyclic pack goes on (see `umpack.core.order`). Whatever is not wholly of that form is as
good as absent: then the pack is hunted as it is printed, a cyclic one from anywhere.

Values go into variables before anything reads them, functions take the variable's *name*, and a
value stands in an expression or in a name only when none but harmless signs are in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from umpack.core.order import SIGNS, VERSION
from umpack.core.pack import PackId
from umpack.dialplan.extension import Extension
from umpack.dialplan.hunting import Run, out

FAMILY = "umpack"
_REDRAWS = 6
"""Half of a pack may be away, and still only one call in a hundred begins on a trunk that is."""


def last(trunk: str) -> str:
    """The variable that says `1` where a trunk is to be tried when all else has failed."""
    return f"UMPACK_LAST_{trunk}"


def read_order() -> Extension:
    """Marks what the order of pack ARG1 names; `UMPACK_LAST` tells whether any is to come last."""
    items, item = "UMPACK_ITEMS", "${UMPACK_ITEM}"
    steps = Extension("s")
    steps.set("UMPACK_ORDER", f"${{DB({FAMILY}/order/${{ARG1}})}}")
    steps.set("UMPACK_REST", f"${{REPLACE(UMPACK_ORDER,{SIGNS}/)}}")
    steps.goto_if("${FIELDQTY(UMPACK_REST,x)} > 0", "done")
    steps.goto_if("${FIELDQTY(UMPACK_ORDER,/)} != 3", "done")
    steps.goto_if(f'"${{CUT(UMPACK_ORDER,/,1)}}" != "{VERSION}"', "done")
    steps.set(items, "${CUT(UMPACK_ORDER,/,2)}")
    steps.do(f'GotoIf($["${{{items}}}" = ""]?last)', "out")
    steps.set(out(f"${{SHIFT({items},:)}}"), "1").do("Goto(out)")
    steps.set(items, "${CUT(UMPACK_ORDER,/,3)}", "last")
    steps.do(f'GotoIf($["${{{items}}}" = ""]?done)', "late")
    steps.set("UMPACK_ITEM", f"${{SHIFT({items},:)}}")
    steps.set(out(item), "1").set(last(item), "1").set("UMPACK_LAST", "1").do("Goto(late)")
    return steps.do("Return()", "done")


def start(name: str, pack: PackId, size: int) -> Extension:
    """Sets `UMPACK_START` of a cyclic pack, and moves its entry on by one.

    The order must have been read: where a start is on a trunk that is left out, another is drawn,
    or that trunk's calls would all go to its neighbour.
    """
    entry, draw = f"DB({FAMILY}/start/{pack})", f"${{RAND(0,{size - 1})}}"
    steps = Extension(name, f"pack {pack}")
    steps.set("UMPACK_START", f"${{{entry}}}")
    steps.set("UMPACK_REST", "${REPLACE(UMPACK_START,0123456789)}")
    steps.goto_if("${FIELDQTY(UMPACK_REST,x)} > 0 | ${FIELDQTY(UMPACK_START,x)} != 1", "any")
    steps.goto_if("${LEN(${UMPACK_START})} > 5", "any")
    steps.goto_if(f"${{UMPACK_START}} >= {size}", "any")
    steps.set(entry, f"$[(${{UMPACK_START}} + 1) % {size}]").do("Goto(drawn)")
    steps.set("UMPACK_START", draw, "any")
    steps.set("UMPACK_DRAWN", "0", "drawn")
    steps.do(f"Gosub(umpack-place,{name},1())", "look")
    steps.goto_if(f'"${{GOSUB_RETVAL}}" != "1" | ${{UMPACK_DRAWN}} >= {_REDRAWS}', "done")
    steps.set("UMPACK_DRAWN", "$[${UMPACK_DRAWN} + 1]").set("UMPACK_START", draw)
    return steps.do("Goto(look)").do("Return()", "done")


def place(name: str, pack: PackId, runs: Sequence[Run]) -> Extension:
    """Answers whether the trunk at `UMPACK_START` is left out."""
    steps = Extension(name, f"pack {pack}")
    for run in runs[:-1]:
        end, away = run.position + run.length, out(run.trunk.id)
        steps.do(f"ExecIf($[${{UMPACK_START}} < {end}]?Return(${{{away}}}))")
    return steps.do(f"Return(${{{out(runs[-1].trunk.id)}}})")
