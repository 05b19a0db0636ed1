"""Who restarts with whom: the same crash under the three strategies, and one under a backoff."""

import asyncio
import logging

from promptside import Actor, ActorStopped, ActorSystem, Backoff, Supervisor


class Part(Actor):
    async def ping(self) -> str:
        return "here"

    async def fail(self) -> None:
        raise ConnectionError("the index is gone")


async def restarts_after_a_crash(system: ActorSystem, strategy: str) -> None:
    parts = [Part.child_spec(name) for name in ("settings", "index", "retriever")]
    supervisor = await Supervisor.start(system, parts, name=strategy, strategy=strategy)
    index = supervisor.child("index")

    async with system.events.subscribe("actor.restarted") as restarts:
        index.tell(Part.fail)
        expected = {"one_for_one": 1, "rest_for_one": 2, "one_for_all": 3}[strategy]
        restarted = [(await anext(restarts)).source.split("/")[-1] for _ in range(expected)]
    print(f"{strategy}: {', '.join(restarted)}")


async def restart_with_a_backoff(system: ActorSystem) -> None:
    part = Part.child_spec("index", backoff=Backoff(initial=0.2, maximum=30.0, jitter=0.0))
    supervisor = await Supervisor.start(system, [part], name="with-backoff")
    index = supervisor.child("index")
    index.kill()
    await asyncio.sleep(0.05)
    try:
        await index.ask(Part.ping)
    except ActorStopped as error:
        print(f"asked meanwhile: {type(error).__name__}, retry in {error.retry_after:.1f} s")
        await asyncio.sleep(error.retry_after + 0.05)
    print(f"asked again: {await index.ask(Part.ping)}")


async def main() -> None:
    logging.disable()  # the crashes are meant
    async with ActorSystem() as system:
        for strategy in ("one_for_one", "rest_for_one", "one_for_all"):
            await restarts_after_a_crash(system, strategy)
        await restart_with_a_backoff(system)


asyncio.run(main())
