"""``holdfast serve``: answer for the Pods of this home over HTTP, until a signal comes."""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from holdfast.cli.invocation import Call, say, with_common_options

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_FOLDER: Final = click.Path(path_type=Path, file_okay=False, exists=True)
_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Where a server is found on this machine that listens everywhere."""
_MIB: Final = 2**20


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0: for everybody.")
@click.option("--port", default=3030, show_default=True, type=click.IntRange(0, 65_535), help="0: a free one.")
@click.option("--allowed-host", "hosts", multiple=True, metavar="NAME", help="What else it is called, as by a proxy.")
@click.option("--no-keyring", is_flag=True, help="Keep no keys: after a restart runs wait until their owner calls.")
@click.option("--no-new-owners", is_flag=True, help="Make no Pods for owners that have none here.")
@click.option("--tls-cert", type=_FILE, help="A certificate (PEM); comes with --tls-key.")
@click.option("--tls-key", type=_FILE, help="Its key (PEM).")
@click.option("--max-body", type=click.IntRange(1), metavar="MiB", help="Of one request that is JSON.  [default: 96]")
@click.option("--max-file", type=click.IntRange(1), metavar="MiB", help="Of one file.  [default: 16384]")
@click.option(
    "--launcher",
    type=click.Choice(["process", "docker", "none"]),
    help="How runs are launched.  [default: process; none if others than this machine can call]",
)
@click.option("--script", "scripts", multiple=True, metavar="IMAGE=FILE", help="A program for runs with this image.")
@click.option("--launch-for-everybody", is_flag=True, help="Processes for all owners: they can do what you can.")
@click.option("--plugins", type=_FOLDER, help="Where processes find plugins, besides the home's.  [default: here]")
@click.option("--docker-network", metavar="NAME", help="Of containers.  [default: the machine's own, on Linux]")
@click.option("--run-address", metavar="URL", help="Where launched runs find this server, if not where it listens.")
@click.option("--run-memory", type=click.IntRange(16), metavar="MiB", help="That a launched run may use.")
@click.option("--run-cpus", type=click.FloatRange(0.01), help="That a container may use.")
@click.option("--run-processes", type=click.IntRange(1), help="That a launched run may have.")
@with_common_options
@click.pass_obj
def command(
    call: Call,
    *,
    host: str,
    port: int,
    hosts: Sequence[str],
    no_keyring: bool,
    no_new_owners: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    max_body: int | None,
    max_file: int | None,
    launcher: str | None,
    scripts: Sequence[str],
    launch_for_everybody: bool,
    plugins: Path | None,
    docker_network: str | None,
    run_address: str | None,
    run_memory: int | None,
    run_cpus: float | None,
    run_processes: int | None,
) -> None:
    """Serve the Pods of this home over HTTP.

    Whoever presents an owner's keys, or a run's token, gets what they open. Runs that are created with a
    containerImage are launched, and looked after. What happens is said on standard error, without keys, tokens and
    values.
    """
    import asyncio  # start-up: help needs none of these
    from importlib.metadata import version

    from holdfast.context.pods import pod_key_id
    from holdfast.context.serving import LocalPods
    from holdfast.context.supervising import Launching, Supervision
    from holdfast.engine import FactsFormatter
    from holdfast.runs import Limits as RunLimits
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
    settings = call.settings()
    opener = LocalPods(settings, is_attended=no_keyring, can_create=not no_new_owners)
    pods = OpenPods(opener)
    certificate = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    called = urlsplit(run_address or "").hostname
    names = (host, *hosts, *(() if called is None else (called,)))
    application = Application(pods, limits, version=version("holdfast"), lease_s=settings.lease_s, hosts=names)
    server = Server(application, limits, certificate=certificate)
    with closing(bind(host, port)) as listening:
        found, used = listening.getsockname()[:2]
        is_local = ipaddress.ip_address(found.partition("%")[0]).is_loopback
        url = _url(found, used, is_secure=certificate is not None)
        if certificate is None and not is_local:
            say("Warning: others on the network can read keys and data on their way here; --tls-cert prevents that.")
        launching = Launching(
            kind=launcher or ("process" if is_local else "none"),
            scripts=_scripts(scripts),
            is_for_all=launch_for_everybody,
            plugins=(plugins or Path.cwd()).absolute(),
            network=docker_network,
            address=run_address,
            limits=RunLimits(
                memory_bytes=None if run_memory is None else run_memory * _MIB, cpus=run_cpus, processes=run_processes
            ),
        )
        supervision = Supervision(settings, pods, pod=pod_key_id(settings), launching=launching)
        opener.stirring = supervision.stirring
        document = {"url": url, "host": found, "port": used, "pid": os.getpid(), "launcher": launching.kind}
        call.answer(document, f"Serving {str(settings.home)!r} at {url}")
        sys.stdout.flush()
        with closing(supervision):
            supervision.start(_url(_HERE.get(str(found), str(found)), used, is_secure=certificate is not None))
            asyncio.run(server.serve([listening]))


def _url(host: str, port: int, *, is_secure: bool) -> str:
    return f"{'https' if is_secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _scripts(given: Sequence[str]) -> dict[str, Path]:
    """Return the program for each image."""
    found: dict[str, Path] = {}
    for each in given:
        image, is_named, file = each.partition("=")
        if not image or not is_named or not file:
            raise click.BadParameter(f"{each!r} is not IMAGE=FILE", param_hint="--script")
        found[image] = Path(file).absolute()
    return found
