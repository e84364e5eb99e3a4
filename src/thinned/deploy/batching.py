"""Requests that arrive together are answered together, and no more of them wait than is said."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Full(Exception):
    """As much is waiting as may."""


class Batcher(Generic[Item, Answer]):
    """A bounded queue, and a thread that answers what is in it, as much at once as it may.

    Nothing waits for a batch to fill: what arrives while one is computed is the next.

    Args:
        compute: answers some items, at most `largest`, in their order.
        largest: items in a batch.
        waiting: items that may wait.
    """

    def __init__(
        self, compute: Callable[[Sequence[Item]], Sequence[Answer]], largest: int, waiting: int
    ) -> None:
        self._compute, self._largest, self._most = compute, largest, waiting
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._thread = ThreadPoolExecutor(1, "compute")
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    async def ask(self, items: Sequence[Item]) -> list[Answer]:
        """The answers to some items.

        Raises:
            Full: they would be too many with those that wait.
        """
        if len(self._waiting) + len(items) > self._most:
            raise Full
        futures = [asyncio.get_running_loop().create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return list(await asyncio.gather(*futures))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            items, futures = zip(*batch, strict=True)
            try:
                answers = await loop.run_in_executor(self._thread, self._compute, items)
            except Exception as error:
                for future in futures:
                    # Its asker may have gone meanwhile.
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, answer in zip(futures, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    def _next(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """The next batch, without those whose askers have gone."""
        batch: list[tuple[Item, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._largest:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch
