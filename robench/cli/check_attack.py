"""``robench check-attack``."""

from __future__ import annotations

import click

from robench.cli.group import hint, main


@main.command("check-attack")
@click.argument("attack", metavar="FILE.py:FUNCTION")
@click.option(
    "--norm", "norms", multiple=True, help="Linf, L2 or L1; may be given several times [default: all that the attack is for]."
)
def check_attack(attack: str, norms: tuple[str, ...]) -> None:
    """Try an attack of your own, or one of `robench list attacks`, on models whose truth is known, before its numbers are believed.

    One line per claim: what it returns, what it leaves alone, the same images for the same seed, and never below the closed form of a
    linear model. Exits with 3 where a claim does not hold.
    """
    from robench.attacks import find_attack
    from robench.evaluation.contract import check_contract

    found = find_attack(attack, norms)
    claims = []
    for claim in check_contract(found.make, found.norms):
        claims.append(claim)
        click.echo(f"{'pass' if claim.holds else 'FAIL'}  {claim.about:<58}  {claim.seen}")
    failed = sum(not claim.holds for claim in claims)
    click.echo(f"{found.name}: {len(claims) - failed} of {len(claims)} claims hold")
    kept = [norm for norm in found.norms if all(claim.holds for claim in claims if claim.about.startswith(norm))]
    if failed and kept:
        said = ", ".join(f'"{norm}"' for norm in kept)
        hint(f"every claim holds in {', '.join(kept)}: if it is for no other norm, say so: @attack(norms=({said},))")
    if failed:
        click.get_current_context().exit(3)
