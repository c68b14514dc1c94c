"""``holdfast serve``: answer for the Pods of this home over HTTP, until a signal comes."""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from holdfast.cli.invocation import Call, say, with_common_options

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_MIB: Final = 2**20


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0: for everybody.")
@click.option("--port", default=3030, show_default=True, type=click.IntRange(0, 65_535), help="0: a free one.")
@click.option("--no-keyring", is_flag=True, help="Keep no keys: after a restart runs wait until their owner calls.")
@click.option("--no-new-owners", is_flag=True, help="Make no Pods for owners that have none here.")
@click.option("--tls-cert", type=_FILE, help="A certificate (PEM); comes with --tls-key.")
@click.option("--tls-key", type=_FILE, help="Its key (PEM).")
@click.option("--max-body", type=click.IntRange(1), metavar="MiB", help="Of one request that is JSON.  [default: 96]")
@click.option("--max-file", type=click.IntRange(1), metavar="MiB", help="Of one file.  [default: 16384]")
@with_common_options
@click.pass_obj
def command(
    call: Call,
    *,
    host: str,
    port: int,
    no_keyring: bool,
    no_new_owners: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    max_body: int | None,
    max_file: int | None,
) -> None:
    """Serve the Pods of this home over HTTP.

    Whoever presents an owner's keys, or a run's token, gets what they open. What happens is said on standard error,
    without keys, tokens and values.
    """
    import asyncio  # start-up: help needs none of these
    from importlib.metadata import version

    from holdfast.context.serving import LocalPods
    from holdfast.engine import FactsFormatter
    from holdfast.server.app import Application
    from holdfast.server.limits import Limits
    from holdfast.server.listening import Server, bind
    from holdfast.server.pods import OpenPods

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key must come together")
    messages = logging.StreamHandler(sys.stderr)
    messages.setFormatter(FactsFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[messages])
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    limits = Limits()
    if max_body is not None:
        limits = replace(limits, body_bytes=max_body * _MIB)
    if max_file is not None:
        limits = replace(limits, file_bytes=max_file * _MIB)
    pods = OpenPods(LocalPods(call.settings(), is_attended=no_keyring, can_create=not no_new_owners))
    certificate = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    server = Server(Application(pods, limits, version=version("holdfast")), limits, certificate=certificate)
    with closing(bind(host, port)) as listening:
        found, used = listening.getsockname()[:2]
        url = f"{'http' if certificate is None else 'https'}://{f'[{found}]' if ':' in found else found}:{used}"
        if certificate is None and not ipaddress.ip_address(found.partition("%")[0]).is_loopback:
            say("Warning: others on the network can read keys and data on their way here; --tls-cert prevents that.")
        document = {"url": url, "host": found, "port": used, "pid": os.getpid()}
        call.answer(document, f"Serving {str(call.settings().home)!r} at {url}")
        sys.stdout.flush()
        asyncio.run(server.serve([listening]))
