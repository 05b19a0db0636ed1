"""A model behind a gateway: a header of its own, a key for each tenant; then its backup, and what is kept of calls."""

import asyncio
from collections.abc import Mapping

from promptside import ActorSystem, Endpoint, LMPool, session
from promptside.testing import FakeServer, Fault

TOKENS = {
    "ada": "key-of-ada",
    "bo": "key-of-bo",
}  # in a service: of a vault, which keeps a key for as long as it is good


async def token(labels: Mapping[str, str]) -> str:
    return TOKENS[labels["session"]]


async def main() -> None:
    with FakeServer("Paris") as server, FakeServer("Paris, says the backup") as spare:
        gateway = Endpoint("openai/big", api_base=server.url, headers={"x-team": "search"}, api_key=token)
        backup = Endpoint("openai/small", api_base=spare.url, api_key="none")
        async with ActorSystem() as system:
            pool = await LMPool(gateway, backup, max_history_size=3).start(system)
            lm = pool.lm(cache=False)
            for tenant in ("ada", "bo"):
                with session(tenant):
                    await lm.acall(f"What is the capital of France, {tenant} asks?")
            for request in server.requests:
                print(request.headers["x-team"], request.headers["authorization"])

            server.fail(Fault.status(503), times=None)
            with session("ada"):
                answer = (await lm.acall("And of Italy?"))[0]
            record = pool.history(1)[0]
            print(f"{answer}: {record['model']} for {record['requested_model']}")

            for number in range(5):
                with session("bo"):
                    await lm.acall(f"Question {number}?")
            print(f"kept: {len(lm.history)} of 8 calls")


asyncio.run(main())
