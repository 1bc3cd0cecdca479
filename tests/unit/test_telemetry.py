"""What the log says of an occurrence, and what it keeps to itself."""

from __future__ import annotations

import logging

import msgspec
import pytest

from skald.telemetry import Occurrence, Parked, Recovering, Retried, emit, listen

WHERE = ("payments", "charge", "orders", 7, "id-7", "correlation")
SECRET = "ConnectError: https://shop:hunter2@bank.example/?token=hunter2 refused"


@pytest.mark.parametrize("occurrence", [Parked(*WHERE, 3, SECRET), Retried(*WHERE, 1, 0.5, SECRET)])
def test_a_handlers_error_is_logged_by_type_and_place_and_told_to_listeners_in_full(
    occurrence: Occurrence, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Occurrence] = []
    stop = listen(told.append)
    with caplog.at_level(logging.WARNING, "skald"):
        emit(occurrence)
    stop()
    line = msgspec.json.decode(caplog.messages[0])
    assert "hunter2" not in caplog.text
    assert (line["type"], line["error"]) == (type(occurrence).__name__, "ConnectError")
    assert (line["handler"], line["origin"], line["position"], line["id"]) == ("charge", "orders", 7, "id-7")
    assert told == [occurrence]


def test_other_texts_are_logged_without_the_passwords_of_addresses(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "skald"):
        emit(Recovering("payments", "commit", "postgresql://me:hunter2@db/x is gone", 1.0))
    line = msgspec.json.decode(caplog.messages[0])
    assert line["error"] == "postgresql://me:***@db/x is gone"
