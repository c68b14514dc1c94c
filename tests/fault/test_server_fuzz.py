"""The API as its description says it is, under requests that nobody would send."""

import re
import subprocess
from pathlib import Path

import pytest

from holdfast.server.limits import Limits
from tests.components import environments
from tests.components.servers import OWNER, serving

PINS = """
    schemathesis==4.32.5 anyio==4.16.0 certifi==2026.10.18 charset-normalizer==3.5.2 click==8.5.1 graphql-core==3.3.2
    harfile==0.6.0 hypothesis==6.170.15 hypothesis-graphql==0.13.5 idna==3.20 iniconfig==2.3.1 jsonschema_rs==0.60.3
    markdown-it-py==4.3.0 MarkupSafe==3.0.4 mdurl==0.1.2 packaging==26.3 pluggy==1.7.0 Pygments==2.21.0
    pyrate-limiter==4.5.1 pytest==9.2.0 PyYAML==6.0.3 requests==2.34.2 rich==15.0.0 sortedcontainers==2.4.0
    typing_extensions==4.16.0 urllib3==2.8.0 Werkzeug==3.1.9
"""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
UNBOUNDED = Limits(requests_per_s=100_000, denials_per_min=1_000_000)


@pytest.mark.timeout(1800)  # for --full; a sample takes half a minute
def test_no_request_meets_an_error_of_the_server_or_an_answer_that_is_not_described(
    tmp_path: Path, is_full: bool
) -> None:
    """By schemathesis, as the owner: with and against the description, at every address but that of the events.

    Those are a stream without an end. A server error is any status from 500 on, and a described one is none either.
    """
    python = environments.install("schemathesis", PINS, tmp_path / "venv")
    with serving(tmp_path / "home", limits=UNBOUNDED) as served:
        command = [python, "-m", "schemathesis.cli", "run", f"{served.url}/api/openapi.json", "--checks", CHECKS]
        command += ["-H", f"Authorization: Bearer {OWNER.database_key}", "--exclude-path-regex", "events"]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "100" if is_full else "5"]
        command += ["--continue-on-failure", "--no-color", "--request-timeout", "20"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-8_000:] + done.stderr
        assert int(re.findall(r"(\d+) generated", done.stdout)[-1]) > 500
        assert served.ask("GET", "/healthz").status == 200
