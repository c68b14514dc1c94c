"""A FastAPI application that plugins extend: one offers a filter for text, one counts visits.

``python -m uvicorn --port 8000 fastapi_app:app`` serves it, from this folder. HOLDFAST_HOME says where its variables
lie, and SECRET_KEY what its sessions are signed with; without one they end with the process.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.middleware.sessions import SessionMiddleware

from holdfast import Context, Settings, current
from holdfast.web import ASGIMiddleware

context = Context(
    settings=Settings.read(plugins_dir=Path(__file__).parent / "plugins"),
    deployment_settings=SimpleNamespace(filters={}),
    registry=lambda: current.session.setdefault("plugins", {}),
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Save the variables and unload the plugins when the server stops."""
    yield
    context.close()


app = FastAPI(lifespan=lifespan)
app.add_middleware(ASGIMiddleware, context=context, session=lambda scope: scope["session"])
# The one added last is called first: it makes the session that plugins find.
app.add_middleware(SessionMiddleware, secret_key=os.environ.get("SECRET_KEY") or secrets.token_hex())


@app.get("/")
def show() -> dict[str, Any]:
    """Show what plugins have left for this request; FastAPI calls this in a thread."""
    return {
        "filters": sorted(current.settings.filters),
        "your visits": current.session.get("visits"),
        "all visits": current.state.visits.total,
    }


@app.get("/export")
async def export() -> StreamingResponse:
    """Send line by line; `current` is there until the last one."""

    async def lines() -> AsyncIterator[str]:
        for number in range(1, current.session["visits"] + 1):
            yield f"visit {number}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.websocket("/filter/{name}")
async def filter_text(websocket: WebSocket, name: str) -> None:
    """Send each text back as the filter makes it; plugins are set up when the connection is opened."""
    await websocket.accept()
    async for text in websocket.iter_text():
        author = current.session.get("name", "somebody")
        await websocket.send_text(f"{author}: {current.settings.filters[name](text)}")


@app.post("/name/{name}")
async def remember(name: str, background: BackgroundTasks) -> None:
    """Remember who this is, and count it when the answer is sent."""
    current.session["name"] = name
    background.add_task(lambda: current.state.incr("names", current.session["name"]))


@app.get("/plugins")
async def list_plugins(request: Request) -> dict[str, Any]:
    """Show the registry."""
    return request.session["plugins"]


@app.post("/plugins/{name}/reload", status_code=202)
async def reload(name: str, request: Request) -> None:
    """Have a plugin reloaded in the next request of this session; a real application asks who wants it."""
    # A new dictionary: the session notices what is assigned to it, not what changes within.
    request.session["plugins"] = {**request.session["plugins"], name: None}
