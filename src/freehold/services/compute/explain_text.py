"""What `explain.py` found of compute, in sentences: an order, a case, a lease, an account's orders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.services.explaining import Words

SHOWN = 12  # orders that are listed one by one


def tell_found(data: dict[str, Any], words: Words) -> Iterator[str]:
    """One piece of work in one epoch."""
    if data["what"] == "order":
        return _order(data, words)
    return _case(data, words) if data["what"] == "case" else _orders(data["orders"], words)


def tell_orders(work: dict[str, Any], words: Words) -> Iterator[str]:
    """An account's part in compute."""
    for stand, count in work["stands"].items():
        yield f"   {count} orders: {stand}"
    yield from _orders(work["paid"], words)
    for case in work["cases"]:
        yield from _case(case, words)
    yield from _slashes(work["slashes"], words)


def _orders(orders: list[dict[str, Any]], words: Words) -> Iterator[str]:
    for order in orders[:SHOWN]:
        measure = "" if order["measure"] is None else f"{order['measure']} ns, "
        yield f"     order {words.short(order['order'])}: {measure}{_paid(order)}"
    if len(orders) > SHOWN:
        yield f"     and {len(orders) - SHOWN} more (--json lists them all)"


def _paid(order: dict[str, Any]) -> str:
    return "paid in this epoch" if order["paid"] else str(order["stand"])


def _order(order: dict[str, Any], words: Words) -> Iterator[str]:
    yield f"   node {order['node']}, lease {words.short(order['lease'])}, task {words.short(order['task'])}"
    for receipt in order["receipts"]:
        yield f"   receipt {words.short(receipt['subject'])} of {receipt['measure']} ns: {_said(receipt)}"
    if order["measure"] is not None:
        yield f"   {order['measure']} ns since epoch {order['since']}, until epoch {order['until']}"
    yield f"   before   {order['before'] or 'unknown'}"
    yield f"   after    {order['stand']}"
    if order["ruled"]:
        yield f"   decided  {_said(order['ruled'])}"
    for case in order["cases"]:
        yield f"   disputed in case {case}"
    if order["paid"]:
        yield "   paid in this epoch, with the others of its lease"


def _case(case: dict[str, Any], words: Words) -> Iterator[str]:
    yield f"   case {case['case']}: {'open' if case['open'] else 'over, or never opened'}"
    for dispute in case["disputes"]:
        yield f"     dispute: {_said(dispute)}"
    if "orders" in case:
        step = "the whole task" if case["step"] is None else f"step {case['step']}"
        yield f"     {step} is run again, compared {case['kind']}; round {case['round']}, since {case['opened']}"
        for node, order, output in zip(case["nodes"], case["orders"], case["outputs"], strict=True):
            yield f"     node {node} said {words.short(output)} for order {words.short(order)}"
    for seat in case["seats"]:
        yield f"     referee {seat['node']}: drawn in epoch {seat['drawn']}, has time until {seat['until']}"
    for opinion in case["opinions"]:
        good = [name for name in ("first", "second") if opinion[name]]
        found = "cannot tell" if opinion["cannot_tell"] else f"finds good: {' and '.join(good) or 'neither'}"
        yield f"     referee {opinion['node']} {found}; {_said(opinion)}"
    for ruled in case["ruled"]:
        yield f"     order {words.short(ruled['subject'])}: {_said(ruled)}"
    yield from _slashes(case["slashes"], words)


def _slashes(slashes: list[dict[str, Any]], words: Words) -> Iterator[str]:
    for slash in slashes:
        tokens = words.amount(int(slash["amount"]))
        yield f"     {tokens} tokens of node {slash['node']}'s bond are slashed, for the harm to {slash['harmed']}"


def _said(verdict: dict[str, Any]) -> str:
    return f"{verdict['reason']} ({verdict['means']})"
