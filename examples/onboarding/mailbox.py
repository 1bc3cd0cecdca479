"""Stands in for a mail service that honours idempotency keys; what it sent is one JSON line each."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Mail(msgspec.Struct, frozen=True):
    key: str
    to: str
    text: str


class Mailbox:
    """``path`` is the file that survives the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.sent: dict[str, Mail] = {}
        if path is not None and path.exists():
            mails = (msgspec.json.decode(line, type=Mail) for line in path.read_bytes().splitlines())
            self.sent = {mail.key: mail for mail in mails}

    async def send(self, key: str, to: str, text: str) -> None:
        """A key that was seen before sends nothing."""
        if key in self.sent:
            return
        self.sent[key] = mail = Mail(key, to, text)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(mail) + b"\n")
