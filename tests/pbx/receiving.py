"""umpack with a spool beside a lab, and callers in the same Asterisk: fax machines and people.

A caller is a Local channel: one half runs SendFAX or plays tones, the other is an incoming call.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import cos, pi, sin
from pathlib import Path

from loguru import logger
from PIL import Image, ImageDraw, ImageSequence

from drivers.asterisk.driver import AsteriskDriver, AsteriskPlan
from drivers.asterisk.reception import Reception, ReceptionTimes
from drivers.asterisk.taking_points import TakingPoint
from tests.pbx.beside import MAIN, REPOSITORY, Beside, configuration
from tests.pbx.lab import SECRET, Lab
from umpack import clock
from umpack.core.distributor import Distributor
from umpack.dialplan import dialplan
from umpack.messages.spool import Spool
from umpack.messages.spool_health import SpoolLimits

NODE = "lab"
AT_ONCE = ReceptionTimes(before_ced=0.2, before_speech=0.1)
NO_RESERVE = SpoolLimits(reserve_bytes=0, slow_after=60.0)

CALLERS = r"""
[callers]
exten => fax,1,Set(FAXOPT(ecm)=${ECM})
 same => n,Set(X=x)
 same => n,GotoIf($["${STATION}" = "bytes"]?bytes)
 same => n,GotoIf($["${STATION}" != "hostile"]?named)
 same => n,Set(STATION=1${REPLACE(X,x,\x0a)}2${REPLACE(X,x,\x1f)}3"$(id))
 same => n,Goto(named)
 same => n(bytes),Set(STATION=${REPLACE(X,x,\xff)}${REPLACE(X,x,\xc3)}"%n`$(id)`'|&<)
 same => n(named),Set(FAXOPT(localstationid)=${STATION})
 same => n,Set(TIMEOUT(absolute)=${LEAVES})
 same => n,SendFAX(${FILE},${OPTIONS})
 same => n,Hangup()
exten => tone,1,Set(TIMEOUT(absolute)=${LEAVES})
 same => n,Playtones(${TONES})
 same => n,Wait(${WAIT})
 same => n,ExecIf($["${KEY}" != ""]?SendDTMF(${KEY}))
 same => n,Wait(30)
exten => h,1,Set(DB(sent/${MARK})=${FAXSTATUS}/${FAXPAGES}/${FAXERROR})
exten => T,1,Hangup()
"""


def with_loop(lab: Lab) -> Lab:
    """A lab, not started yet, that can call itself by SIP: as `self` with T.38, as `plain` without.

    Whoever is called so has T.38.
    """
    file = lab.directory / "etc/pjsip.conf"
    text = file.read_text(encoding="utf-8")
    for name, t38 in (("self", "yes"), ("plain", "no")):
        text += (
            f"\n[{name}]\ntype=endpoint\ncontext=callers\naors={name}\ndisallow=all\nallow=alaw\n"
            f"direct_media=no\nmedia_address=127.0.0.1\nt38_udptl={t38}\n"
            f"[{name}]\ntype=aor\ncontact=sip:127.0.0.1:{lab.sip_port}\n"
        )
    lab.write("pjsip.conf", text)
    return lab


def page(seed: int, *, fine: bool = False, rows: int = 0, dense: bool = False) -> Image.Image:
    """A page 1728 pixels wide: text-like strokes that no two seeds have alike, or noise."""
    rows = rows or (400 if fine else 200)
    chance = random.Random(seed)
    if dense:
        image = Image.frombytes("1", (1728, rows), chance.randbytes(216 * rows))
    else:
        image = Image.new("1", (1728, rows), 1)
        draw = ImageDraw.Draw(image)
        for _ in range(60):
            x, y = chance.randrange(1500), chance.randrange(rows - 10)
            draw.rectangle((x, y, x + chance.randrange(5, 200), y + chance.randrange(1, 9)), 0)
    image.info["dpi"] = (204, 196 if fine else 98)
    return image


def write_tiff(path: Path, pages: Sequence[Image.Image]) -> Path:
    """A TIFF-F file of these pages, as SendFAX wants it."""
    first, *others = pages
    first.save(
        path, "TIFF", compression="group4", save_all=True, append_images=others,
        dpi=first.info["dpi"], resolution_unit=2,
    )  # fmt: skip
    return path


def rasters(source: Path | bytes) -> list[bytes]:
    """The pages' pixels, whatever their coding."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return [
            b"%d*%d " % frame.size + frame.convert("1").tobytes()
            for frame in ImageSequence.Iterator(image)
        ]


def raster_of(image: Image.Image) -> bytes:
    """The same of a page that was made here."""
    return b"%d*%d " % image.size + image.tobytes()


def loudness(samples: Sequence[int], frequency: float, rate: int = 8000) -> float:
    """How much of the sound is this tone: 0 to 1 of its power (Goertzel, in tenths of a second, so
    that a lost packet turns the phase of one of them only)."""
    found = power = 0.0
    size = rate // 10
    for start in range(0, len(samples) - size + 1, size):
        block = samples[start : start + size]
        real = sum(s * cos(2 * pi * frequency * n / rate) for n, s in enumerate(block))
        imaginary = sum(s * sin(2 * pi * frequency * n / rate) for n, s in enumerate(block))
        found += 2 * (real * real + imaginary * imaginary) / size
        power += sum(s * s for s in block)
    return found / power if power else 0.0


@dataclass
class Receiving(Beside):
    """A running umpack that receives."""

    spool: Spool = field(kw_only=True)


@asynccontextmanager
async def receiving(
    lab: Lab,
    site: str,
    directory: Path,
    *,
    limits: SpoolLimits = NO_RESERVE,
    times: ReceptionTimes | None = None,
) -> AsyncIterator[Receiving]:
    """Core, driver and spool in this loop; `directory` is one that Asterisk sees, too."""
    async with Spool(directory, NODE, limits=limits, quiet=0.0) as spool:
        distributor = Distributor(configuration(site, 1).site)
        reception = Reception(spool, clock.now, spool.disk.abort, times)
        driver = AsteriskDriver(
            AsteriskPlan(MAIN, "127.0.0.1", 0, None), distributor, clock.now, reception=reception
        )
        beside = Receiving(distributor, driver, spool=spool)
        sink = logger.add(lambda line: beside.complaints.append(str(line)), level="WARNING")
        try:
            await driver.start()
            await asyncio.to_thread(load, lab, site, driver.agi_port)
            yield beside
        finally:
            logger.remove(sink)
            await driver.close(0.0)


def load(lab: Lab, site: str, agi_port: int) -> None:
    """Have the running PBX read the dialplan of a site, and the callers'."""
    text = dialplan(configuration(site, agi_port), MAIN)
    lab.write("extensions.conf", f"[from-line]\ninclude => umpack-in\n{CALLERS}{text}")
    lab.rx("dialplan reload")


@dataclass(frozen=True, slots=True)
class Machine:
    """A caller with a fax machine. `leaves` is seconds from the answer, 0: when done."""

    file: Path
    called: str = "100"
    caller: str = "0301234"
    ecm: bool = True
    station: str = "+49 30 1234"
    leaves: float = 0.0
    via: str = "Local/{called}@from-line/n"
    options: str = ""

    def start(self, lab: Lab, mark: str) -> None:
        """Place the call; `sent` tells how it went."""
        variables = {
            "ECM": "yes" if self.ecm else "no", "STATION": self.station, "FILE": str(self.file),
            "LEAVES": f"{self.leaves:g}", "MARK": mark, "OPTIONS": self.options,
        }  # fmt: skip
        originate(lab, self.via.format(called=self.called), "fax", self.caller, variables)


def speak(
    lab: Lab, tones: str, *, wait: float, key: str = "", leaves: float = 0.0, called: str = "100"
) -> None:
    """A caller who plays tones (indications.conf syntax), presses a key, and leaves."""
    variables = {
        "TONES": tones.replace(",", "\\,"), "WAIT": f"{wait:g}", "KEY": key,
        "LEAVES": f"{leaves:g}", "MARK": "spoken",
    }  # fmt: skip
    originate(lab, f"Local/{called}@from-line/n", "tone", "0301234", variables)


def originate(
    lab: Lab, channel: str, extension: str, caller: str, variables: dict[str, str]
) -> None:
    """Let Asterisk place a call whose own end runs an extension of `callers`."""
    lines = [
        "Action: Login", "Username: umpack", f"Secret: {SECRET}", "Events: off", "",
        "Action: Originate", "ActionID: o", f"Channel: {channel}", "Context: callers",
        f"Exten: {extension}", "Priority: 1", f'CallerID: "Müller" <{caller}>', "Async: true",
        "Codecs: alaw",
        *(f"Variable: {name}={value}" for name, value in variables.items()), "", "",
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", lab.ami_port), timeout=10) as ami:
        ami.sendall("\r\n".join(lines).encode())
        heard = b""
        while b"ActionID: o" not in heard:
            piece = ami.recv(4096)
            assert piece, heard
            heard += piece
        assert b"successfully queued" in heard, heard


def sent(lab: Lab, mark: str, seconds: float = 90.0) -> tuple[str, str, str]:
    """FAXSTATUS, pages and error as the sending machine saw it; waits for its end."""
    for _ in range(round(seconds / 0.2)):
        text = lab.rx(f"database get sent {mark}")
        if text.startswith("Value: "):
            status, pages, error = text.removeprefix("Value: ").strip().split("/")
            return status, pages, error
        time.sleep(0.2)
    raise AssertionError(f"{mark} is still sending:\n{lab.rx('core show channels')}\n{lab.log}")


class ReceivingProcess:
    """A receiving umpack of its own process, made to be killed."""

    def __init__(
        self, lab: Lab, site: str, directory: Path, dies_at: TakingPoint | None = None
    ) -> None:
        point = [dies_at.name] if dies_at else []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pbx.receiving", site, str(directory), *point],
            cwd=REPOSITORY, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        load(lab, site, int(self._process.stdout.readline()))

    def __enter__(self) -> ReceivingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait(self, seconds: float) -> int:
        """Until it has died by itself; how."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        """As the kernel's out-of-memory killer would; may be called twice."""
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


async def _serve(site: str, directory: Path, dies_at: TakingPoint | None) -> None:
    def reach(point: TakingPoint) -> None:
        if point is dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    async with Spool(directory, NODE, limits=NO_RESERVE) as spool:
        distributor = Distributor(configuration(site, 1).site)
        reception = Reception(spool, clock.now, spool.disk.abort, reach=reach)
        plan = AsteriskPlan(MAIN, "127.0.0.1", 0, None)
        driver = AsteriskDriver(plan, distributor, clock.now, reception=reception)
        await driver.start()
        print(driver.agi_port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(
        sys.argv[1], Path(sys.argv[2]), TakingPoint[sys.argv[3]] if sys.argv[3:] else None
    ))  # fmt: skip
