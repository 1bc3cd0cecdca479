"""PURE. The audit: what must hold between the six services and the two providers once everything has come to
rest.

Each rule is a function from the books to one finding. The ledgers of the providers are the outside world's
view (what really was charged, labelled and sent), the tables are each service's own, and the logs are what
they told each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from examples.shop.analytics import DAY, MINUTE
from examples.shop.books import Books, Fact, Row

KEPT = ("CONFIRMED", "COMPLETED")
"""Orders whose money stays with us. Those that need a person are half undone: whatever they hold is listed."""


class Finding(msgspec.Struct, frozen=True):
    rule: str
    holds: bool
    detail: str


class Audit(msgspec.Struct, frozen=True):
    findings: tuple[Finding, ...]
    orders: dict[str, int]
    """How many by state."""
    money: dict[str, int]
    stock: dict[str, int]
    messages: dict[str, int]
    attention: tuple[str, ...]
    """Orders that need a person."""
    doubled: tuple[str, ...]
    """References under which the keyless provider has sent more than once: counted, listed, and nobody's
    fault.
    """

    @property
    def balanced(self) -> bool:
        return all(finding.holds for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {"balanced": self.balanced, **msgspec.to_builtins(self)}


def audit(books: Books, acknowledged: Collection[str] = ()) -> Audit:
    """``acknowledged`` are the orders that the gateway has answered with 202: none of them may be missing."""
    statuses = Counter(row["status"] for row in books.tables["orders"])
    return Audit(
        findings=(_acknowledged(books, acknowledged), *(rule(books) for rule in RULES)),
        orders={
            state: statuses[state] for state in ("PENDING", "CONFIRMED", "COMPLETED", "CANCELLED", "NEEDS_ATTENTION")
        },
        money=_money_of(books),
        stock=_stock_of(books),
        messages={"sent": len(books.keyless), "doubled": len(_doubles(books.keyless, "reference"))},
        attention=tuple(sorted(_attention(books))),
        doubled=tuple(_doubles(books.keyless, "reference")),
    )


# --- orders and money ---------------------------------------------------------------------------------------


def _acknowledged(books: Books, acknowledged: Collection[str]) -> Finding:
    missing = sorted(set(acknowledged) - {row["order_id"] for row in books.tables["orders"]})
    return _none("every acknowledged order exists", missing, f"{len(acknowledged)} acknowledged")


def _settled(books: Books) -> Finding:
    open_ = [r["order_id"] for r in books.tables["orders"] if r["status"] == "PENDING" or r["cancelling"]]
    return _none("no order is pending", open_, f"{len(books.tables['orders'])} orders are settled")


def _money(books: Books) -> Finding:
    money = _money_of(books)
    return _equal(
        "money taken is the sum of confirmed and completed orders",
        money["charged"] - money["refunded"],
        money["kept"] + money["open"],
    )


def _money_of(books: Books) -> dict[str, int]:
    charges, refunds, attention = _done(books, "charge"), _done(books, "refund"), _attention(books)
    return {
        "charged": sum(entry["amount"] for entry in charges),
        "refunded": sum(entry["amount"] for entry in refunds),
        "kept": sum(row["total"] for row in books.tables["orders"] if row["status"] in KEPT),
        "open": sum(entry["amount"] for entry in charges if entry["reference"] in attention)
        - sum(entry["amount"] for entry in refunds if entry["reference"] in attention),
    }


def _attention(books: Books) -> set[str]:
    return {row["order_id"] for row in books.tables["orders"] if row["status"] == "NEEDS_ATTENTION"}


def _charged_once(books: Books) -> Finding:
    charges = _done(books, "charge")
    return _none("each order is charged at most once", _doubles(charges, "reference"), f"{len(charges)} charges")


def _refunded_iff(books: Books) -> Finding:
    cancelled = {row["order_id"] for row in books.tables["orders"] if row["status"] == "CANCELLED"}
    due = {entry["reference"] for entry in _done(books, "charge")} & cancelled
    refunds = Counter(e["reference"] for e in _done(books, "refund") if e["reference"] not in _attention(books))
    wrong = sorted(order for order in due | refunds.keys() if refunds[order] != (order in due))
    return _none(
        "each charged and cancelled order is refunded exactly once, and no other",
        wrong,
        f"{len(due)} refunds",
    )


def _kept_orders_are_charged(books: Books) -> Finding:
    charged = {entry["reference"]: entry["amount"] for entry in _done(books, "charge")}
    kept = {row["order_id"]: row["total"] for row in books.tables["orders"] if row["status"] in KEPT}
    wrong = [order for order, total in kept.items() if charged.get(order) != total]
    return _none("each confirmed order is charged its total", wrong, f"{len(kept)} orders")


def _keys_once(books: Books) -> Finding:
    return _none("the keyed provider has one entry per key", _doubles(books.keyed, "key"), f"{len(books.keyed)} keys")


# --- stock and parcels --------------------------------------------------------------------------------------


def _stock_of(books: Books) -> dict[str, int]:
    held = _held(books)
    return {
        "received": sum(row["received"] for row in books.tables["items"]),
        "available": sum(row["available"] for row in books.tables["items"]),
        "reserved": sum(count for (status, _), count in held.items() if status == "RESERVED"),
        "shipped": sum(count for (status, _), count in held.items() if status == "SHIPPED"),
    }


def _stock(books: Books) -> Finding:
    held = _held(books)
    wrong = [
        row["sku"]
        for row in books.tables["items"]
        if row["received"] != row["available"] + held["RESERVED", row["sku"]] + held["SHIPPED", row["sku"]]
    ]
    pieces = _stock_of(books)["received"]
    return _none("stock before is stock after, shipped and reserved", wrong, f"{pieces} pieces, article by article")


def _held(books: Books) -> Counter[tuple[str, str]]:
    """Pieces by state of their reservation and by article."""
    status = {row["order_id"]: row["status"] for row in books.tables["reservations"]}
    held: Counter[tuple[str, str]] = Counter()
    for row in books.tables["reserved_items"]:
        held[status[row["order_id"]], row["sku"]] += row["quantity"]
    return held


def _reserved_iff_kept(books: Books) -> Finding:
    holding = {r["order_id"] for r in books.tables["reservations"] if r["status"] in ("RESERVED", "SHIPPED")}
    kept = {row["order_id"] for row in books.tables["orders"] if row["status"] in KEPT}
    wrong = sorted((holding ^ kept) - _attention(books))
    return _none("stock is held for confirmed orders and for no other", wrong, f"{len(kept)} orders")


def _reserved_once(books: Books) -> Finding:
    # What somebody outside tells once more has no cause.
    reserved = [fact for fact in books.facts("inventory", "InventoryReserved") if fact.cause is not None]
    twice = _repeated(fact.order_id for fact in reserved)
    return _none("each order is reserved at most once", twice, f"{len(books.tables['reservations'])} reservations")


def _labels(books: Books) -> Finding:
    labels = _done(books, "label")
    withdrawn = {entry["reference"] for entry in _done(books, "withdrawal")}
    live = {entry["reference"] for entry in labels} - withdrawn
    kept = {row["order_id"] for row in books.tables["orders"] if row["status"] in KEPT}
    wrong = [*_doubles(labels, "reference"), *sorted((live ^ kept) - _attention(books))]
    return _none("each confirmed order has one label, and no other order has any", wrong, f"{len(labels)} labels")


# --- read models --------------------------------------------------------------------------------------------


def _orders_fold(books: Books) -> Finding:
    ends = {"OrderPlaced": "PENDING", "OrderConfirmed": "CONFIRMED", "OrderCancelled": "CANCELLED"}
    fold = _last(_told(books.facts("orders", *ends, "OrderCompleted")), {**ends, "OrderCompleted": "COMPLETED"})
    for log in books.logs.values():
        last = _last_types(log)
        fold |= {key: "NEEDS_ATTENTION" for key in fold if last.get(str(key)) == "CompensationFailed"}
    return _same("orders", fold, {row["order_id"]: row["status"] for row in books.tables["orders"]})


def _steps_fold(books: Books) -> Finding:
    origins = {
        "payment": ("payments", "Payment"),
        "inventory": ("inventory", "Inventory"),
        "shipping": ("shipping", "Shipment"),
    }
    states = {"Processed": "done", "Reserved": "done", "Scheduled": "done"}
    states |= {"Failed": "failed", "Rejected": "failed"}
    states |= {"Refunded": "undone", "Released": "undone", "Cancelled": "undone"}
    fold = {(row["order_id"], step): "pending" for row in books.tables["orders"] for step in origins}
    for step, (service, prefix) in origins.items():
        for fact in _told(books.facts(service, *(prefix + end for end in states))):
            if fold.get((fact.order_id, step)) != "undone":
                fold[fact.order_id, step] = states[fact.type.removeprefix(prefix)]
    return _same(
        "steps",
        fold,
        {(row["order_id"], step): row[step] for row in books.tables["orders"] for step in origins},
    )


def _sagas(books: Books) -> Finding:
    """Where orders have one: it is undone with its order, and ends when the parcel has left."""
    orders = {row["order_id"]: row for row in books.tables["orders"]} if books.tables["sagas"] else {}
    wanted = {id: _statuses_of_saga(row) for id, row in orders.items() if row["status"] != "NEEDS_ATTENTION"}
    sagas = {row["order_id"]: row["status"] for row in books.tables["sagas"]}
    wrong = sorted(id for id, statuses in wanted.items() if sagas.get(id) not in statuses)
    return _none("each saga stands where its order does", wrong, f"{len(sagas)} sagas")


def _statuses_of_saga(order: Row) -> tuple[str, ...]:
    if order["status"] == "CANCELLED":
        return "COMPENSATED", "CANCELLED"
    return ("COMPLETED",) if order["handed_over"] else ("IN_PROGRESS",)


def _payments_fold(books: Books) -> Finding:
    ends = {"PaymentProcessed": "CHARGED", "PaymentFailed": "FAILED", "PaymentRefunded": "REFUNDED"}
    rows = {row["order_id"]: row["status"] for row in books.tables["payments"]}
    return _same("payments", _last(_told(books.facts("payments", *ends)), ends), rows)


def _tasks_fold(books: Books) -> Finding:
    last = _last_types(books.logs["payments"])
    fold = {key: "OPEN" for key, type in last.items() if type == "CompensationFailed"}
    rows = {row["order_id"]: row["status"] for row in books.tables["tasks"] if row["status"] == "OPEN"}
    return _same("open tasks", fold, rows)


def _reservations_fold(books: Books) -> Finding:
    ends = {"InventoryReserved": "RESERVED", "InventoryRejected": "REJECTED", "InventoryReleased": "RELEASED"}
    fold = _last(_told(books.facts("inventory", *ends)), ends)
    fold |= {fact.order_id: "SHIPPED" for fact in books.facts("shipping", "ShipmentHandedOver")}
    return _same("reservations", fold, {row["order_id"]: row["status"] for row in books.tables["reservations"]})


def _shipments_fold(books: Books) -> Finding:
    kinds = ("Scheduled", "Failed", "Cancelled", "HandedOver", "Delivered")
    ends = {f"Shipment{kind}": kind.upper() for kind in kinds}
    rows = {row["order_id"]: row["status"] for row in books.tables["shipments"]}
    return _same("shipments", _last(_told(books.facts("shipping", *ends)), ends), rows)


def _prices_fold(books: Books) -> Finding:
    fold: dict[Hashable, Any] = {}
    for fact in sorted(books.facts("orders", "PriceChanged"), key=lambda fact: fact.body["version"]):
        fold[fact.key] = fact.body["price"]
    return _same("prices", fold, {row["sku"]: row["price"] for row in books.tables["prices"]})


def _analytics_fold(books: Books) -> Finding:
    fold: Counter[tuple[str, int]] = Counter()
    for fact in _told(books.logs["orders"]):
        day = fact.time // DAY
        match fact.type:
            case "OrderPlaced":
                fold["placed", fact.time // MINUTE] += 1
            case "OrderConfirmed":
                fold["confirmed", day] += 1
                fold["cents", day] += fact.body["total"]
            case "OrderCancelled":
                fold["cancelled", day] += 1
                fold["confirmed", day] -= fact.body["was_confirmed"]
                fold["cents", day] -= fact.body["total"] * fact.body["was_confirmed"]
    rows: Counter[tuple[str, int]] = Counter()
    for row in books.tables["orders_per_minute"]:
        rows["placed", row["minute"]] = row["placed"]
    for row in books.tables["revenue_per_day"]:
        rows["cents", row["day"]] = row["cents"]
    for row in books.tables["outcomes_per_day"]:
        rows["confirmed", row["day"]], rows["cancelled", row["day"]] = row["confirmed"], row["cancelled"]
    # A Counter takes a missing figure for zero.
    wrong = [
        f"{name} {when}: {rows[name, when]} instead of {fold[name, when]}"
        for name, when in sorted(fold.keys() | rows.keys())
        if rows[name, when] != fold[name, when]
    ]
    return _none("the analytics equal a fold of the log", wrong, f"{len(rows)} figures")


def _sent_fold(books: Books) -> Finding:
    entries = {entry["reference"] for entry in books.keyless}
    unsent = sorted(row["reference"] for row in books.tables["sent"] if row["reference"] not in entries)
    return _none("every message noted as sent was sent", unsent, f"{len(books.tables['sent'])} messages")


RULES: tuple[Callable[[Books], Finding], ...] = (
    _settled,
    _money,
    _charged_once,
    _refunded_iff,
    _kept_orders_are_charged,
    _keys_once,
    _stock,
    _reserved_iff_kept,
    _reserved_once,
    _labels,
    _orders_fold,
    _steps_fold,
    _sagas,
    _payments_fold,
    _tasks_fold,
    _reservations_fold,
    _shipments_fold,
    _prices_fold,
    _analytics_fold,
    _sent_fold,
)


# --- comparing ----------------------------------------------------------------------------------------------


def _done(books: Books, kind: str) -> list[Row]:
    return [entry for entry in books.keyed if entry["kind"] == kind and entry["status"] == "done"]


def _last(facts: Iterable[Fact], states: dict[str, str]) -> dict[Hashable, Any]:
    return {fact.order_id: states[fact.type] for fact in facts}


def _told(facts: Sequence[Fact]) -> list[Fact]:
    """Without those that tell the same once more, as another message."""
    first = {(fact.type, fact.key): fact for fact in reversed(facts)}
    return [fact for fact in facts if first[fact.type, fact.key] is fact]


def _last_types(log: Iterable[Fact]) -> dict[str, str]:
    """What a service has said last, by key."""
    return {fact.key: fact.type for fact in log}


def _doubles(rows: Iterable[Row], column: str) -> list[str]:
    return _repeated(row[column] for row in rows)


def _repeated(values: Iterable[str]) -> list[str]:
    return sorted(value for value, count in Counter(values).items() if count > 1)


def _none(rule: str, wrong: Collection[str], otherwise: str) -> Finding:
    few = ", ".join(list(wrong)[:5]) + (" …" if len(wrong) > 5 else "")
    return Finding(rule, not wrong, f"{len(wrong)}: {few}" if wrong else otherwise)


def _equal(rule: str, left: int, right: int) -> Finding:
    return Finding(rule, left == right, f"{left}" if left == right else f"{left} and {right}")


def _same(model: str, fold: Mapping[Any, Any], rows: Mapping[Any, Any]) -> Finding:
    wrong = [key for key in fold.keys() | rows.keys() if fold.get(key) != rows.get(key)]
    return _none(f"{model} equal a fold of the log", [str(key) for key in wrong], f"{len(rows)} rows")
