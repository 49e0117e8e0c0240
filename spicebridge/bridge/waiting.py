"""Applications that have connected to a listening end and wait for a stream."""

from __future__ import annotations

import logging
from collections import deque
from types import TracebackType
from typing import Self

import anyio

from spicebridge.bridge.report import BridgeStatus
from spicebridge.endpoints.base import Application, Endpoint


class WaitingRoom:
    """Accepts applications; the one that came first is taken first.

    As a context manager it lets those go that nobody took.

    Args:
        endpoint: where they come from; open.
        status: where those are told of that are turned away.
        limit: how many may wait.
    """

    def __init__(self, endpoint: Endpoint, status: BridgeStatus, limit: int) -> None:
        self._endpoint = endpoint
        self._status = status
        self._limit = limit
        self._waiting: deque[Application] = deque()
        self._came = anyio.Semaphore(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._waiting:
            self._waiting.popleft().stream.close()

    async def run(self) -> None:
        """Accepts, until cancelled."""
        while True:
            application = await self._endpoint.accept()
            if len(self._waiting) >= self._limit:
                self._forget_gone()
            if len(self._waiting) >= self._limit:
                self._status.event(
                    "app-refused",
                    f"{application.name} refused: {self._limit} wait for a stream already",
                    logging.WARNING,
                    app=application.name,
                )
                application.stream.close()
                continue
            self._waiting.append(application)
            self._came.release()

    async def take(self) -> Application:
        """Waits for an application that is still there. When cancelled, none has been taken."""
        while True:
            await self._came.acquire()
            if not self._waiting:
                continue
            application = self._waiting.popleft()
            if not application.stream.hung_up():
                return application
            application.stream.close()

    def put_back(self, application: Application) -> None:
        """Has one that was taken wait again, before all others."""
        self._waiting.appendleft(application)
        self._came.release()

    def _forget_gone(self) -> None:
        for application in [each for each in self._waiting if each.stream.hung_up()]:
            self._waiting.remove(application)
            application.stream.close()
