"""`freehold why` for people: the steps of `explain.py` as sentences and sums, each with the numbers that went in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import click

from freehold.cli.amounts import format_amount, format_exact, format_size, short
from freehold.cli.output import plain, print_table
from freehold.services.explaining import Words
from freehold.services.judging import EXPLAINERS

WORDS = Words(format_amount, format_size, short)
SHOWN = 12  # verdicts of one kind and reason that are listed one by one


def show_explanation(data: dict[str, Any]) -> None:
    """Everything, in the order in which an epoch settles it."""
    click.echo(f"{data['subject']} in epoch {data['epoch']}")
    if data["account"] != data["subject"]:
        whose = "operator" if data["nodes"] else "owner"
        click.echo(f"paid to the account of its {whose} {data['account']}")
    _member(data["member"])
    _nodes(data["nodes"])
    _verdicts(data["verdicts"])
    for service, facts in data["services"].items():
        _say(EXPLAINERS[service].tell(facts, WORDS))
    _contributions(data["contributions"])
    _payments(data["payments"])
    _rewards(data["rewards"])
    _totals(data)
    _account(data["settled"])
    _chain(data["chain"])


def show_found(data: dict[str, Any]) -> None:
    """One piece of work in one epoch, as its service tells it, with what was paid for it."""
    click.echo(f"{data['what']} {data['subject']} in epoch {data['epoch']}")
    _say(EXPLAINERS[data["service"]].tell_found(data, WORDS))
    for payment in data["payments"]:
        click.echo("payment of the lease, for all that was done under it in this epoch")
        show_payment(payment)
    if not data["payments"] and "lease" in data:
        click.echo("its lease paid nothing in this epoch")


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(plain(line))


def _title(number: int, text: str) -> None:
    click.echo()
    click.secho(f"{number}. {text}", bold=True)


def _nodes(nodes: list[dict[str, Any]]) -> None:
    _title(1, "Its nodes at the epoch's anchor")
    for node in nodes:
        where = f"registered at {node['endpoint']}" if node["registered"] else "not registered"
        bonded = "enough for subsidy" if node["bonded"] else "too little for subsidy"
        click.echo(f"   {node['node']}  {where}")
        click.echo(
            f"   bond {format_amount(int(node['bond']))} tokens ({bonded}); held {format_size(node['held_before'])}"
        )
    if not nodes:
        click.echo("   none")


def _verdicts(verdicts: list[dict[str, Any]]) -> None:
    _title(2, "Evidence and verdicts")
    counts = Counter((v["kind"], v["reason"]) for v in verdicts)
    means = {v["reason"]: v["means"] for v in verdicts}
    for (kind, reason), count in sorted(counts.items()):
        click.echo(f"   {count} x {kind}: {reason} ({means[reason]})")
    drawn = [(v, _obligation(v)) for v in verdicts if v["obligation"]]
    for verdict, what in drawn[:SHOWN]:
        click.echo(f"   {what} in lease {short(verdict['lease'])}: {verdict['reason']}")
    if len(drawn) > SHOWN:
        click.echo(f"   and {len(drawn) - SHOWN} more (--json lists them all)")
    if not verdicts:
        click.echo("   none: nothing was asked of it, and it sent nothing that counts")


def _obligation(verdict: dict[str, Any]) -> str:
    told = EXPLAINERS[verdict["service"]].tell_obligation(verdict["obligation"], WORDS)
    return told or f"asked: {short(verdict['subject'])}"


def _member(member: dict[str, Any] | None) -> None:
    if member is not None:
        observed = (
            "its observation is in the manifest" if member["observed"] else "the manifest has others' observations"
        )
        click.echo(f"one of the quorum's {member['members']} members: {observed}")


def _rewards(rewards: list[dict[str, Any]]) -> None:
    for reward in rewards:
        click.echo(f"   {reward['service']} reward, that no client's payment matches")
        share = f"floor({reward['schedule']} x {reward['share_ppm']} / 1000000) = {reward['pool']}"
        if "members" in reward:
            click.echo(f"     pool      {share}   (the members' part of the schedule)")
            click.echo(f"     subsidy   floor({reward['pool']} / {reward['members']} members) = {reward['subsidy']}")
            continue
        click.echo(f"     pool      {share}   (the devices' part of the schedule)")
        click.echo(
            f"     share     floor({reward['pool']} / {reward['services']} services) = {reward['service_share']}"
        )
        click.echo(
            f"     subsidy   floor({reward['service_share']} x {reward['measure']} / {reward['total']}) = "
            f"{reward['subsidy']}"
        )


def _contributions(contributions: list[dict[str, Any]]) -> None:
    _title(3, "What that proves")
    for item in contributions:
        click.echo(f"   lease {short(item['lease'])}: {EXPLAINERS[item['service']].tell_contribution(item, WORDS)}")
    if not contributions:
        click.echo("   nothing")


def _payments(payments: list[dict[str, Any]]) -> None:
    _title(4, "Payments")
    for payment in payments:
        show_payment(payment)
    if not payments:
        click.echo("   none")


def show_payment(p: dict[str, Any]) -> None:
    """The arithmetic of one payment."""
    left = max(0, int(p["lock"]) - int(p["settled_before"]))
    click.echo(
        f"   lease {short(p['lease'])} ({p['mode']}), client {short(p['client'])} -> operator {short(p['operator'])}"
    )
    if p["mode"] == "stream":
        price = format_exact(int(p["price"]))
        click.echo(
            f"     owed      floor({p['measure']} x {p['price']} / {p['units']}) = {p['owed']}   (price {price})"
        )
    else:
        click.echo(f"     owed      voucher - settled = {p['owed']}")
    click.echo(
        f"     credits   min(owed, lock {p['lock']} - settled {p['settled_before']} = {left}, rest) = {p['credits']}"
    )
    spent, all_left, basis = p["client_spent"], p["client_left"], p["client_basis"]
    click.echo(
        f"     client    spent {spent} of {all_left} credits left: releases {p['client_released']} of {basis} tokens"
    )
    click.echo(f"     released  floor({p['client_released']} x {p['credits']} / {spent}) = {p['released']}")
    click.echo(
        f"     earned    floor({p['released']} x {1_000_000 - p['tau_ppm']} / 1000000) = {p['earned']}   (less tau)"
    )
    click.echo(f"     burned    {p['released']} - {p['earned']} = {p['burned']}   (for good)")
    cap = f"floor({p['burned']} x {p['beta_ppm']} / 1000000) = {p['cap']}" if p["bonded"] else "0: not bonded"
    click.echo(f"     cap       {cap}")
    if int(p["caps_of_all"]) <= int(p["pool"]):
        click.echo(f"     subsidy   {p['subsidy']}   (all caps {p['caps_of_all']} fit into the pool {p['pool']})")
    else:
        click.echo(f"     subsidy   floor({p['pool']} x {p['cap']} / {p['caps_of_all']}) = {p['subsidy']}")


def _totals(data: dict[str, Any]) -> None:
    _title(5, "Shares of this epoch")
    totals = data["totals"]
    tokens = ("revenue", "subsidy", "rewards", "tokens")
    for name, unit in (*((name, "tokens") for name in tokens), ("spent", "credits")):
        click.echo(f"   {name:<8} {format_exact(int(totals[name]))} {unit}")
    for reason in data["zero"]:
        click.echo(f"   why nothing: {reason}")


def _account(settled: dict[str, Any] | None) -> None:
    _title(6, "Account and proof")
    if settled is None:
        click.echo("   no account yet: one is opened with the first payment")
        return
    names = list(settled["after"])
    print_table(
        ["   ", "before", "after"],
        [[f"   {n}", format_exact(int(settled["before"][n])), format_exact(int(settled["after"][n]))] for n in names],
    )
    click.echo(f"   leaf  {settled['leaf']} at position {settled['index']} of {settled['accounts']}")
    for level, sibling in enumerate(settled["proof"]):
        click.echo(f"   proof {level:>2} {sibling}")
    click.echo(f"   root  {settled['root']}   (recomputed: the proof leads to it)")


def _chain(chain: dict[str, Any] | None) -> None:
    if chain is None:
        return
    _title(7, "On chain")
    click.echo(f"   this report equals the report accepted on chain; it is {chain['status']}")
    click.echo(f"   claimed   {format_exact(int(chain['claimed']))} tokens so far, paid to {chain['payout']}")
    click.echo(f"   claimable {format_exact(int(chain['claimable']))} tokens now")
    if int(chain["later"]):
        click.echo(f"   later     {format_exact(int(chain['later']))} tokens once this report is active")
