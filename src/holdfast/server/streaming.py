"""Answers that come in parts, and use a Pod until they have ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class Held(StreamingResponse):
    """An answer that comes in parts, and uses a Pod until it has ended."""

    def __init__(self, content: AsyncGenerator[bytes], stack: AsyncExitStack, **how: Any) -> None:
        super().__init__(content, **how)
        self._stack = stack
        stack.push_async_callback(content.aclose)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._stack:
            await super().__call__(scope, receive, send)
