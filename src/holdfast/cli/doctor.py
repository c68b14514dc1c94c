"""``holdfast doctor``: say what `holdfast.cli.checks` found."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import click

from holdfast.cli.drawing import escaped
from holdfast.cli.invocation import Call, with_common_options
from holdfast.errors import UnavailableError

_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@with_common_options
@click.pass_context
def command(ctx: click.Context) -> None:
    """Look for what is wrong, and say what to do.

    Says what is set and by whom, and checks versions, folders, keys, the file system, and every page of every Pod that
    a key here opens. Nothing is made where nothing is, and nothing is mended. Ends with 6 if a check failed.
    """
    from holdfast.cli.checks import Finding, examine  # start-up: help and completion need none of it

    call: Call = ctx.obj
    settings = call.settings()
    findings: list[Finding] = []
    explained = settings.explain()
    if not call.is_json:
        for each in explained:
            click.echo(escaped(f"{'set':<5}{each.name}: {each.value} ({each.where})"))
    for finding in examine(settings):
        findings.append(finding)
        if not call.is_json:
            click.secho(f"{finding.verdict:<5}", fg=_COLOURS[finding.verdict], nl=False)
            click.echo(escaped(f"{finding.check}: {finding.found}" + "; " * bool(finding.advice) + finding.advice))
    is_well = all(each.verdict != "fail" for each in findings)
    if call.is_json:
        document = {"home": str(settings.home), "settings": [*map(asdict, explained)], "is_well": is_well}
        call.answer({**document, "findings": [*map(asdict, findings)]}, "")
    if not is_well:
        ctx.exit(UnavailableError.exit_code)
