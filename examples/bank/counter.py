"""The bank's counter, as a program: it starts no process of the service.

python -m examples.bank.counter open ada 10000
python -m examples.bank.counter open bob
python -m examples.bank.counter transfer t-1 ada bob 2500
python -m examples.bank.counter close bob
python -m examples.bank.counter show
"""

from __future__ import annotations

import asyncio
import sys

from examples.bank.accounts import NotPossible, close_account, open_account, standing
from examples.bank.app import app, bank
from examples.bank.transfer import Transfer, transfer
from skald import SagaCompensated


async def serve(what: str, *more: str) -> str:
    async with app.connect("bank"):
        try:
            match [what, *more]:
                case ["open", account, *balance]:
                    await open_account(bank, account, int(*balance))
                case ["close", account]:
                    await close_account(bank, account)
                case ["transfer", id, source, target, amount]:
                    await transfer.run(Transfer(id, source, target, int(amount)), id=id)
                case ["show"]:
                    pass
                case _:
                    raise SystemExit(__doc__)
        except (NotPossible, SagaCompensated) as refused:
            return f"refused: {refused}"
        return str(await standing(bank))


if __name__ == "__main__":
    print(asyncio.run(serve(*sys.argv[1:])))
