"""The command line: run services, and look after them. Everything but running goes through ``operations``.

Exit statuses, the same for every command:

    0    done
    1    refused or failed: the line on stderr says why; also ``doctor`` when it finds an error
    2    wrong use: an unknown command, option, service or application
    75   ``run``: another process has taken over from this one; start it again
    130  interrupted by Ctrl-C
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Sequence

from skald.errors import ConfigurationError, SkaldError

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and ends the process with its status."""
    _prepare_streams()
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough (head). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


def _prepare_streams() -> None:
    """What a terminal cannot show is written as JSON writes it, so that JSON stays JSON in every encoding."""
    # Python has none where the shell closed it (>&-).
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    codecs.register_error("skald.escaped", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="skald.escaped")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _run(arguments: Sequence[str]) -> int:
    try:
        import cyclopts
    except ImportError:
        return _complain("the command line needs its extra: pip install 'skald[cli]'", WRONG_USE)
    from skald.cli.commands import command_line
    from skald.operations import UnknownName

    try:
        result = command_line()(
            arguments, exit_on_error=False, print_error=False, result_action="return_value", backend="asyncio"
        )
    except cyclopts.CycloptsError as error:
        return _complain(f"{_usage(error)} (see: {_chain(error)} --help)", WRONG_USE)
    except (ConfigurationError, UnknownName) as error:
        return _complain(str(error), WRONG_USE)
    except UnicodeEncodeError as error:
        return _complain(f"{error.object!r} has bytes that are no text: write it in UTF-8", WRONG_USE)
    except BrokenPipeError:
        raise
    except (SkaldError, OSError) as error:
        return _complain(str(error) or type(error).__name__, FAILED)
    return result if isinstance(result, int) else 0


def _usage(error: Exception) -> str:
    from cyclopts.exceptions import UnusedCliTokensError

    if isinstance(error, UnusedCliTokensError):
        return f"unexpected: {' '.join(error.unused_tokens or ())}"
    text = " ".join(str(error).split())
    return text[:1].lower() + (text[1:] if text.endswith("...") else text[1:].rstrip("."))


def _chain(error: Exception) -> str:
    return " ".join(["skald", *(getattr(error, "command_chain", None) or ())])


def _complain(text: str, status: int) -> int:
    from skald.cli.output import plain
    from skald.operations import scrubbed

    # What was already written must come first where both go to one place.
    sys.stdout.flush()
    print(f"skald: {scrubbed(plain(text))}", file=sys.stderr)
    return status
