"""An outage of a thousand seconds, tested in no time: run_virtual moves the clock to the next timer.

The circuit opens and closes as it would in production, a server's call fails fast, and a batch waits for the end.
"""

import asyncio

from dspy.lm15 import Request, ServerError

from promptside import ActorSystem, CircuitOpen, Endpoint, LMPool, priority
from promptside.testing import MockLM, run_virtual


def provider(request: Request) -> str:
    if 10 <= asyncio.get_running_loop().time() < 1010:
        raise ServerError("bad gateway")
    return "Paris"


async def main() -> None:
    loop = asyncio.get_running_loop()
    async with ActorSystem() as system:
        pool = await LMPool(Endpoint("mock/atlas", engine=MockLM(provider))).start(system)
        lm = pool.lm(cache=False)
        print(f"{loop.time():.0f} s:", await lm.acall("What is the capital of France?"))
        await asyncio.sleep(20)
        with priority("batch", run="nightly", outage_timeout=3600):
            batch = asyncio.create_task(lm.acall("What is the capital of France?"))
        await asyncio.sleep(60)
        try:
            await lm.acall("What is the capital of France?")
        except CircuitOpen:
            print(f"{loop.time():.0f} s: the circuit is {pool.breaker('mock/atlas').state}")
        answer = await batch
        print("after the outage:", loop.time() > 1010, answer)


if __name__ == "__main__":
    run_virtual(main())
