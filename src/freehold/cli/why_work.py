"""`freehold why` for people, of compute: an order, a case, a lease, an account's orders (`explain_work.py`)."""

from __future__ import annotations

from typing import Any

import click

from freehold.cli.amounts import format_amount, short

SHOWN = 12  # orders that are listed one by one


def show_work(data: dict[str, Any]) -> None:
    """One piece of work in one epoch."""
    from freehold.cli.why_text import show_payment

    click.echo(f"{data['what']} {data['subject']} in epoch {data['epoch']}")
    if data["what"] == "order":
        _order(data)
    elif data["what"] == "case":
        _case(data)
    else:
        _orders(data["orders"])
    for payment in data["payments"]:
        click.echo("payment of the lease, for all its orders of this epoch")
        show_payment(payment)
    if not data["payments"] and data["what"] != "case":
        click.echo("its lease paid nothing in this epoch")


def show_orders(work: dict[str, Any] | None) -> None:
    """An account's part in compute."""
    if work is None:
        return
    for stand, count in work["stands"].items():
        click.echo(f"   {count} orders: {stand}")
    _orders(work["paid"])
    for case in work["cases"]:
        _case(case)
    _slashes(work["slashes"])


def _orders(orders: list[dict[str, Any]]) -> None:
    for order in orders[:SHOWN]:
        measure = "" if order["measure"] is None else f"{order['measure']} ns, "
        click.echo(f"     order {short(order['order'])}: {measure}{_paid(order)}")
    if len(orders) > SHOWN:
        click.echo(f"     and {len(orders) - SHOWN} more (--json lists them all)")


def _paid(order: dict[str, Any]) -> str:
    return "paid in this epoch" if order["paid"] else str(order["stand"])


def _order(order: dict[str, Any]) -> None:
    click.echo(f"   node {order['node']}, lease {short(order['lease'])}, task {short(order['task'])}")
    for receipt in order["receipts"]:
        click.echo(f"   receipt {short(receipt['subject'])} of {receipt['measure']} ns: {_said(receipt)}")
    if order["measure"] is not None:
        click.echo(f"   {order['measure']} ns since epoch {order['since']}, until epoch {order['until']}")
    click.echo(f"   before   {order['before'] or 'unknown'}")
    click.echo(f"   after    {order['stand']}")
    if order["ruled"]:
        click.echo(f"   decided  {_said(order['ruled'])}")
    for case in order["cases"]:
        click.echo(f"   disputed in case {case}")
    if order["paid"]:
        click.echo("   paid in this epoch, with the others of its lease")


def _case(case: dict[str, Any]) -> None:
    click.echo(f"   case {case['case']}: {'open' if case['open'] else 'over, or never opened'}")
    for dispute in case["disputes"]:
        click.echo(f"     dispute: {_said(dispute)}")
    if "orders" in case:
        step = "the whole task" if case["step"] is None else f"step {case['step']}"
        click.echo(f"     {step} is run again, compared {case['kind']}; round {case['round']}, since {case['opened']}")
        for node, order, output in zip(case["nodes"], case["orders"], case["outputs"], strict=True):
            click.echo(f"     node {node} said {short(output)} for order {short(order)}")
    for seat in case["seats"]:
        click.echo(f"     referee {seat['node']}: drawn in epoch {seat['drawn']}, has time until {seat['until']}")
    for opinion in case["opinions"]:
        good = [name for name in ("first", "second") if opinion[name]]
        found = "cannot tell" if opinion["cannot_tell"] else f"finds good: {' and '.join(good) or 'neither'}"
        click.echo(f"     referee {opinion['node']} {found}; {_said(opinion)}")
    for ruled in case["ruled"]:
        click.echo(f"     order {short(ruled['subject'])}: {_said(ruled)}")
    _slashes(case["slashes"])


def _slashes(slashes: list[dict[str, Any]]) -> None:
    for slash in slashes:
        click.echo(
            f"     {format_amount(int(slash['amount']))} tokens of node {slash['node']}'s bond are slashed, "
            f"for the harm to {slash['harmed']}"
        )


def _said(verdict: dict[str, Any]) -> str:
    return f"{verdict['reason']} ({verdict['means']})"
