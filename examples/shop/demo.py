"""``python -m examples.shop.demo``: the whole shop as separate processes, some hundred real orders, and a
ledger.

Everything it writes is below ``.skald/`` of the current folder, which it empties at the start if it is its
own. Exit status: 0 if the ledger balances, 1 if it does not, 2 if the demo could not begin.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from examples.shop.house import House, Used
from examples.shop.stage import Result, Stage
from examples.shop.styles import DEFAULT, STYLES
from examples.shop.supervisor import NotStarted
from skald.errors import SkaldError
from skald.telemetry import scrubbed

FOLDER = Path(".skald")
MARKER = "made-by-the-shop-demo"
PREFERRED_PORT = 8080
PACE = {
    # The table of failures in its own time would take minutes; see the README for what these are without a demo.
    "SHOP_PATIENCE": "1",
    "SHOP_CHARGE_DELAYS": "0.2,0.5",
    "SHOP_LABEL_DELAYS": "0.1,0.3,0.6",
    "SHOP_UNDO_DELAYS": "0.1,0.2,0.5,1,2,5,10,30",
    "SHOP_NOTIFY_DELAYS": "0.1,0.5,1,2,5",
}


class Refused(Exception):
    """The demo does not begin; the message says why and what to do."""


class Options(msgspec.Struct, frozen=True):
    style: str
    serve: bool
    chaos: bool
    store: str
    orders: int
    seed: int
    json: bool


def options(arguments: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(prog="demo", description="The shop: six services, real orders, and a ledger.")
    parser.add_argument("--style", choices=STYLES, default=DEFAULT, help="who tells whom what to do (%(default)s)")
    parser.add_argument("--serve", action="store_true", help="keep it running afterwards, for the page and the API")
    parser.add_argument("--chaos", action="store_true", help="kill -9 processes at random while orders flow")
    parser.add_argument("--store", default=f"sqlite:{FOLDER}", help="sqlite:FOLDER or postgresql://… (%(default)s)")
    parser.add_argument("--orders", type=int, default=300, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="draws the same orders again (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the ledger as one JSON object, and nothing else")
    given = parser.parse_args(arguments)
    if given.orders < 0:
        parser.error("--orders is 0 or more")
    return Options(**vars(given))


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """The folder, empty, and nobody else's while the demo runs. Only one that a demo has made is emptied."""
    marker = folder / MARKER
    if folder.is_symlink() or (folder.exists() and any(folder.iterdir()) and not marker.exists()):
        raise Refused(f"{folder}/ was not made by the demo, so it is left alone: move it away or start elsewhere")
    folder.mkdir(exist_ok=True)
    with marker.open("a+") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.seek(0)
            raise Refused(f"a demo is running here already, as process {held.read().strip()}") from None
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != marker:
                entry.unlink()
        held.truncate(0)
        held.write(f"{os.getpid()}\n")
        held.flush()
        yield folder


async def run(chosen: Options, folder: Path, out: TextIO) -> int:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    pace = {name: os.environ.get(name, value) for name, value in PACE.items()}
    house = House(folder, chosen.store, style=chosen.style, port=PREFERRED_PORT, settings=pace)
    try:
        result = await Stage(house, chosen.orders, chosen.seed, chosen.chaos, out).perform()
        if chosen.json:
            print(json.dumps(result.as_dict()), flush=True)
        else:
            report(result, out)
        if chosen.serve:
            print(f"Serving {house.url}/ until Ctrl-C.", file=out, flush=True)
            await asyncio.Event().wait()
    finally:
        await house.close()
    return 0 if result.audit.balanced else 1


def report(result: Result, out: TextIO) -> None:
    audit = result.audit
    states = ", ".join(f"{count} {state.lower().replace('_', ' ')}" for state, count in audit.orders.items())
    money, stock = audit.money, audit.stock
    rows = [
        ("orders", f"{sum(audit.orders.values())}: {states}"),
        (
            "money",
            f"{euros(money['charged'])} charged - {euros(money['refunded'])} refunded = {euros(money['kept'])} kept"
            + (f" + {euros(money['open'])} open" if money["open"] else ""),
        ),
        (
            "stock",
            f"{stock['received']:,} before = {stock['available']:,} after"
            f" + {stock['reserved']:,} reserved + {stock['shipped']:,} shipped",
        ),
        (
            "customers",
            f"{audit.messages['sent']:,} messages sent, {audit.messages['doubled']} of them doubled",
        ),
        ("time", result.times()),
    ]
    if result.kills:
        rows.append(("chaos", f"{result.kills} times kill -9, {result.repeated} requests repeated"))
    rows.append(("rules", f"{sum(f.holds for f in audit.findings)} of {len(audit.findings)} hold"))
    print("\n".join(f"  {name:<10} {text}" for name, text in rows), file=out)
    for finding in audit.findings:
        if not finding.holds:
            print(f"  broken     {finding.rule}: {finding.detail}", file=out)
    print("The ledger balances." if audit.balanced else "The ledger does NOT balance.", file=out, flush=True)


def euros(cents: int) -> str:
    return f"€{cents // 100:,}.{cents % 100:02}"


def main() -> int:
    chosen = options()
    out = sys.stderr if chosen.json else sys.stdout
    try:
        with own_folder(FOLDER) as folder:
            return asyncio.run(run(chosen, folder, out))
    except (Refused, Used, NotStarted) as refusal:
        print(f"demo: {refusal}", file=sys.stderr)
        return 2
    except SkaldError as error:
        print(f"demo: {scrubbed(str(error))}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("Stopped; no process is left.", file=out)
        return 130


if __name__ == "__main__":
    sys.exit(main())
