"""`EndpointQueue`: where the calls of a pool wait until they may go to an endpoint. On the pool's event loop.

Called by the dispatcher before each attempt; all queues of a pool share one `QueueBound`.
"""

from __future__ import annotations

from promptside.errors import PoolSaturated, QueueTimeout
from promptside.pools.errors import LMPoolSaturated, LMQueueTimeout
from promptside.pools.resilience.limiter import Slot
from promptside.pools.resilience.wait_queue import QueueBound, QueuedCall, WaitQueue

__all__ = ["EndpointQueue", "QueueBound", "QueuedCall"]


class EndpointQueue(WaitQueue):
    """A wait queue whose errors are DSPy's too."""

    async def acquire_for(self, model: str, call: QueuedCall) -> Slot | None:
        """As `acquire`.

        Raises:
            LMPoolSaturated: As many calls wait as may.
            LMQueueTimeout: The call has waited for the queue's timeout.
        """
        try:
            return await self.acquire(call)
        except PoolSaturated as error:
            raise LMPoolSaturated(error.pool, error.max_queue, model=model) from None
        except QueueTimeout as error:
            raise LMQueueTimeout(error.pool, error.waited, model=model) from None
