"""``holdfast serve``: where it listens, what it says, and how it ends."""

import signal
import socket
import subprocess
from pathlib import Path

import pytest

from holdfast.context import PodClient
from holdfast.errors import InvalidError, UnavailableError
from holdfast.items import Person
from tests.components.servers import OWNER, SERVE, Process, make_certificate


def serve(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a server that cannot be."""
    return subprocess.run(
        [*SERVE, "--home", str(home), *words], check=False, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_server_says_where_it_listens_and_ends_with_a_signal(tmp_path: Path, number: int, code: int) -> None:
    """On this machine alone, with nothing to warn of; nothing is left to check when it is next opened."""
    with Process(tmp_path / "home") as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        with PodClient(url=server.url, owner_key=OWNER.owner_key, database_key=OWNER.database_key) as client:
            ada = client.create(Person(firstName="Ada"))
            assert repr(client) == f"<PodClient {server.url!r}>"
        assert server.end(number) == code
        assert "Warning" not in server.said()
        assert OWNER.database_key not in server.said()
        assert not [*(tmp_path / "home" / "pods").glob("*-wal")]
        server.start()
        with PodClient(url=server.url, owner_key=OWNER.owner_key, database_key=OWNER.database_key) as client:
            assert client.get(str(ada.id)) == ada


def test_beyond_this_machine_it_listens_when_it_is_told_and_warns(tmp_path: Path) -> None:
    """Keys would cross the network for everybody to read."""
    with Process(tmp_path / "home", words=["--host", "0.0.0.0"]) as server:
        assert server.url == f"http://0.0.0.0:{server.port}"
        assert "Warning: others on the network can read keys and data" in server.said()
        assert server.launcher == "none"


def test_with_a_certificate_who_trusts_it_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not sends no key there."""
    certificate, key = make_certificate(tmp_path)
    words = ["--tls-cert", str(certificate), "--tls-key", str(key), "--host", "0.0.0.0"]
    keys = {"owner_key": OWNER.owner_key, "database_key": OWNER.database_key}
    with Process(tmp_path / "home", words=words) as server:
        assert "Warning" not in server.said()
        url = f"https://127.0.0.1:{server.port}"
        with pytest.raises(UnavailableError, match=r"(?i)certificate verify failed"):
            PodClient(url=url, **keys)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with PodClient(url=url, **keys) as client:
            file = client.upload_file(b"a" * 100_000, filename="a")
            assert client.get_file(file) == b"a" * 100_000


def test_the_limits_can_be_set(tmp_path: Path) -> None:
    """The error names the one that was met."""
    with Process(tmp_path / "home", words=["--max-body", "1", "--max-file", "1"]) as server:
        keys = {"owner_key": OWNER.owner_key, "database_key": OWNER.database_key}
        with PodClient(url=server.url, **keys) as client:
            with pytest.raises(InvalidError, match="at most 1,048,576 bytes") as refused:
                client.create(Person(firstName="a" * 2**20))
            assert refused.value.facts == {"max_bytes": 2**20}
            client.upload_file(bytes(2**20))
            with pytest.raises(InvalidError, match="at most 1,048,576 bytes"):
                client.upload_file(bytes(2**20 + 1))


def test_new_owners_are_not_made_where_they_are_not_wanted(tmp_path: Path) -> None:
    """Who has a Pod there is served."""
    with (
        Process(tmp_path / "home", words=["--no-new-owners"]) as server,
        pytest.raises(PermissionError, match="new owners"),
    ):
        PodClient(url=server.url, owner_key=OWNER.owner_key, database_key=OWNER.database_key)


def test_a_server_that_cannot_be_says_why(tmp_path: Path) -> None:
    """And ends with the code of that kind of error."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = serve(tmp_path, "--port", port)
        assert (found.returncode, f"nothing can listen on '127.0.0.1', port {port}" in found.stderr) == (6, True)
    found = serve(tmp_path, "--host", "nowhere.invalid")
    assert (found.returncode, "is no address of this machine" in found.stderr) == (2, True)
    found = serve(tmp_path, "--tls-cert", "cert.pem")
    assert (found.returncode, "--tls-cert and --tls-key must come together" in found.stderr) == (2, True)
    (tmp_path / "cert.pem").write_text("nothing")
    words = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "cert.pem")]
    found = serve(tmp_path, *words)
    assert (found.returncode, "the certificate cannot be used" in found.stderr) == (2, True)


def test_a_client_inside_a_run_finds_its_pod_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By arguments of its own it finds another one."""
    with Process(tmp_path / "home") as server:
        monkeypatch.setenv("POD_FULL_ADDRESS", server.url)
        monkeypatch.setenv("POD_OWNER", OWNER.owner_key)
        auth = tmp_path / "auth.json"
        auth.write_text(f'{{"type": "ClientAuth", "databaseKey": "{OWNER.database_key}"}}')
        monkeypatch.setenv("POD_AUTH_FILE", str(auth))
        with PodClient() as client:
            client.create(Person(id="ada", firstName="Ada"))
        with PodClient(home=tmp_path / "other") as client:
            assert not client.exists("ada")
        monkeypatch.setenv("POD_AUTH_JSON", '{"type": "PluginAuth", "data": {"token": "hft1.s3cret"}}')
        with pytest.raises(InvalidError, match="POD_AUTH_JSON and POD_AUTH_FILE are both set"):
            PodClient()
        monkeypatch.delenv("POD_AUTH_FILE")
        with PodClient() as client, pytest.raises(PermissionError, match="does not open here") as denied:
            client.exists("ada")
        assert "s3cret" not in str(denied.value)
        monkeypatch.setenv("POD_AUTH_JSON", '{"s3cret": 1}')
        with pytest.raises(InvalidError, match="POD_AUTH_JSON must hold a JSON object") as refused:
            PodClient()
        assert "s3cret" not in str(refused.value)
