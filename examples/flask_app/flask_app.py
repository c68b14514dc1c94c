"""A Flask application that plugins extend: one puts up a notice, one counts visits.

``python -m waitress --listen=127.0.0.1:8000 flask_app:app`` serves it, from this folder. HOLDFAST_HOME says where its
variables lie, and SECRET_KEY what its sessions are signed with; without one they end with the process.
"""

import atexit
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.types import WSGIEnvironment

from flask import Flask, Request, Response, session
from flask.sessions import SecureCookieSessionInterface

from holdfast import Context, Settings, current
from holdfast.web import WSGIMiddleware


class OneSession(SecureCookieSessionInterface):
    """Opens the session of a request once: for plugins, who come first, and for Flask, which saves it."""

    def open_session(self, app: Flask, request: Request) -> Any:
        """Return the session, the same one to both."""
        if "app.session" not in request.environ:
            request.environ["app.session"] = super().open_session(app, request)
        return request.environ["app.session"]


def session_of(environ: WSGIEnvironment) -> Any:
    """Return the session of a request that Flask has not seen yet."""
    return app.session_interface.open_session(app, app.request_class(environ))


app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()
app.session_interface = OneSession()
context = Context(
    settings=Settings.read(plugins_dir=Path(__file__).parent / "plugins"),
    registry=lambda: current.session.setdefault("plugins", {}),
)
atexit.register(context.close)
app.wsgi_app = WSGIMiddleware(app.wsgi_app, context, session=session_of)


@app.get("/")
def show() -> dict[str, Any]:
    """Show what plugins have left for this request."""
    return {
        "notice": getattr(current.settings, "notice", None),
        "your visits": session.get("visits"),
        "all visits": current.state.visits.total,
    }


@app.get("/export")
def export() -> Response:
    """Send line by line; `current` is there until the last one, while Flask's own session is not."""

    def lines() -> Iterator[str]:
        for number in range(1, current.session["visits"] + 1):
            yield f"visit {number}\n"

    return Response(lines(), mimetype="text/plain")


@app.get("/plugins")
def list_plugins() -> dict[str, Any]:
    """Show the registry."""
    return session["plugins"]


@app.post("/plugins/<name>/reload")
def reload(name: str) -> tuple[str, int]:
    """Have a plugin reloaded in the next request of this session; a real application asks who wants it."""
    # A new dictionary: the session notices what is assigned to it, not what changes within.
    session["plugins"] = {**session["plugins"], name: None}
    return "", 202
