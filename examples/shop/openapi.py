"""The gateway's contract, OpenAPI 3.1: written by hand, the schemas of what comes in taken from the types."""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]

ORDER: Json = {
    "type": "object",
    "required": ["order_id", "status", "total", "reason", "steps"],
    "properties": {
        "order_id": {"type": "string"},
        "status": {"enum": ["PENDING", "CONFIRMED", "CANCELLED", "COMPLETED", "NEEDS_ATTENTION"]},
        "total": {"type": "integer", "description": "cents"},
        "reason": {"type": ["string", "null"]},
        "steps": {"type": "array", "items": {"$ref": "#/components/schemas/Step"}},
    },
}
STEP: Json = {
    "type": "object",
    "required": ["name", "state", "time"],
    "properties": {
        "name": {"enum": ["payment", "inventory", "shipping"]},
        "state": {"enum": ["pending", "done", "failed", "undone"]},
        "time": {"type": ["string", "null"], "format": "date-time"},
    },
}
ACCEPTED: Json = {
    "type": "object",
    "required": ["order_id", "status"],
    "properties": {"order_id": {"type": "string"}, "status": {"type": "string"}},
}
PAGE: Json = {
    "type": "object",
    "required": ["orders", "next"],
    "properties": {
        "orders": {"type": "array", "items": {"$ref": "#/components/schemas/Order"}},
        "next": {"type": ["string", "null"], "description": "the cursor of the next page"},
    },
}
PRICE: Json = {
    "type": "object",
    "properties": {
        "sku": {"type": "string"},
        "name": {"type": "string"},
        "price": {"type": "integer", "description": "cents"},
        "note": {"type": "string"},
    },
}
PROBLEM: Json = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
HANDMADE: Json = {
    "Order": ORDER,
    "Step": STEP,
    "Accepted": ACCEPTED,
    "Page": PAGE,
    "Price": PRICE,
    "Problem": PROBLEM,
}
REFUSALS = {
    400: "cannot be read",
    404: "there is no such order",
    408: "did not arrive in time",
    409: "cannot be done any more, with the reason",
    413: "too large",
    422: "does not fit, or the Idempotency-Key was used with another body",
    429: "this customer has too many orders in process; see Retry-After",
    503: "not now; see Retry-After",
}


def document(new_order: type, cancellation: type) -> Json:
    _, schemas = msgspec.json.schema_components([new_order, cancellation], ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The shop",
            "version": "1",
            "description": "Money is in cents. Errors are RFC 9457.",
        },
        "paths": _paths(new_order.__name__, cancellation.__name__),
        "components": {"schemas": {**HANDMADE, **schemas}},
    }


def _paths(new_order: str, cancellation: str) -> Json:
    order_id = {"name": "order_id", "in": "path", "required": True, "schema": {"type": "string"}}
    key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}}
    listing: list[Json] = [
        {"name": "customer", "in": "query", "required": True, "schema": {"type": "string"}},
        {
            "name": "limit",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        },
        {"name": "cursor", "in": "query", "schema": {"type": "string"}},
    ]
    stream = {"200": {"description": "the order now and after each change", "content": {"text/event-stream": {}}}}
    return {
        "/orders": {
            "post": _post(
                "Place an order", "durable, and being processed", new_order, [key], True, 400, 408, 413, 422, 429
            ),
            "get": _get("The orders of a customer, newest first", _json(200, "a page", "Page"), listing, 400),
        },
        "/orders/{order_id}": {"get": _get("One order", _json(200, "the order", "Order"), [order_id], 404)},
        "/orders/{order_id}/cancel": {
            "post": _post(
                "Cancel an order",
                "being tried",
                cancellation,
                [order_id, key],
                False,
                400,
                404,
                408,
                409,
                413,
                422,
            )
        },
        "/orders/{order_id}/events": {"get": _get("Its changes, live, until it is settled", stream, [order_id], 404)},
        "/prices": {"get": _get("What can be ordered", _list("Price"), [])},
        "/health": {"get": _get("The process is alive", {"200": {"description": "it is"}}, [])},
        "/ready": {"get": _get("Orders can be placed", {"200": {"description": "they can"}}, [])},
    }


def _get(summary: str, responses: Json, parameters: list[Json], *refusals: int) -> Json:
    return {
        "summary": summary,
        "parameters": parameters,
        "responses": {**responses, **_refused(*refusals, 503)},
    }


def _post(summary: str, done: str, body: str, parameters: list[Json], required: bool, *refusals: int) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
    return {
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": required, "content": content},
        "responses": {**_json(202, done, "Accepted"), **_refused(*refusals, 503)},
    }


def _json(status: int, description: str, schema: str, media: str = "application/json") -> Json:
    content = {media: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {str(status): {"description": description, "content": content}}


def _list(schema: str) -> Json:
    array = {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}}
    return {"200": {"description": "all of them", "content": {"application/json": {"schema": array}}}}


def _refused(*statuses: int) -> Json:
    answers: Json = {}
    for status in statuses:
        answers |= _json(status, REFUSALS[status], "Problem", "application/problem+json")
    return answers
