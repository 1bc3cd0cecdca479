"""What every process of the demo starts with: it ends when the supervisor is gone, however that one died.

    python -m examples.shop.child skald run examples.shop.app:app --service payments
    python -m examples.shop.child serve examples.shop.gateway:create

``SHOP_LIFELINE`` is the reading end of a pipe whose other end only the supervisor holds: end of file means
that it is gone, even after ``kill -9``, on Linux and macOS alike. ``SHOP_SOCKET`` is a listening socket that
the supervisor keeps, so that a process that is killed and started again answers at the same address.
"""

from __future__ import annotations

import importlib
import logging
import os
import runpy
import signal
import socket
import sys
import threading
import time

LAST_WORDS = 5.0


def watch(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_WORDS)
    os.kill(os.getpid(), signal.SIGKILL)


def serve(target: str) -> None:
    """Serves the ASGI application that ``module:factory`` makes."""
    import uvicorn

    module, _, factory = target.partition(":")
    application = getattr(importlib.import_module(module), factory)()
    config = uvicorn.Config(application, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run([socket.socket(fileno=int(os.environ["SHOP_SOCKET"]))])


def main() -> None:
    lifeline = os.environ.pop("SHOP_LIFELINE", None)
    if lifeline is not None:
        threading.Thread(target=watch, args=(int(lifeline),), daemon=True).start()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    what, sys.argv = sys.argv[1], sys.argv[1:]
    if what == "serve":
        serve(sys.argv[1])
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
