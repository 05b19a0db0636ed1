"""Names and groups."""

from __future__ import annotations

import asyncio

import pytest

from promptside.actors import ActorSystem, State
from promptside.errors import ActorStartError, NameNotFound, NameTaken
from promptside.supervision import ChildSpec, Supervisor
from tests.support.actors import Boom, Worker, until


async def test_a_named_actor_is_found_by_its_name_which_is_its_path() -> None:
    async with ActorSystem() as system:
        ref = await system.with_options(name="desk").spawn(Worker)
        assert system.whereis("desk") == ref
        assert (ref.name, ref.path) == ("desk", "desk")
        assert (await system.spawn(Worker)).name is None


async def test_a_name_is_unique_and_the_error_says_so() -> None:
    async with ActorSystem() as system:
        ref = await system.with_options(name="desk").spawn(Worker)
        with pytest.raises(NameTaken, match="desk"):
            await system.with_options(name="desk").spawn(Worker)
        assert system.whereis("desk") == ref
        assert len(system.tree().children) == 1


async def test_an_unknown_name_is_an_error_that_names_it() -> None:
    async with ActorSystem() as system:
        with pytest.raises(NameNotFound, match="nobody"):
            system.whereis("nobody")


@pytest.mark.parametrize("how", ["stop", "kill", "crash"])
async def test_a_name_is_free_after_the_end(how: str) -> None:
    async with ActorSystem() as system:
        ref = await system.with_options(name="desk").spawn(Worker)
        if how == "stop":
            await ref.stop()
        elif how == "kill":
            ref.kill()
        else:
            ref.tell(Worker.fail, Boom())
        await until(lambda: ref.info().state is State.STOPPED)
        with pytest.raises(NameNotFound):
            system.whereis("desk")
        again = await system.with_options(name="desk").spawn(Worker)
        assert again != ref


async def test_a_name_stays_across_restarts() -> None:
    async with ActorSystem() as system:
        await system.spawn(Supervisor, [ChildSpec("child", Worker, name="desk")])
        ref = system.whereis("desk")
        ref.kill()
        assert system.whereis("desk") == ref
        await until(lambda: ref.incarnation == 2)
        assert system.whereis("desk") == ref


async def test_of_many_spawns_with_one_name_at_once_one_wins() -> None:
    async with ActorSystem() as system:
        spawns = (system.with_options(name="desk").spawn(Worker) for _ in range(10))
        results = await asyncio.gather(*spawns, return_exceptions=True)
        assert sum(isinstance(each, NameTaken) for each in results) == 9


async def test_a_name_of_a_failed_start_is_free() -> None:
    class Failing(Worker):
        async def on_start(self) -> None:
            raise Boom

    async with ActorSystem() as system:
        for _ in range(2):
            with pytest.raises(ActorStartError):
                await system.with_options(name="desk").spawn(Failing)


@pytest.mark.parametrize("name", ["", "a/b", 5])
async def test_a_name_that_makes_no_path_is_an_error_that_names_it(name: object) -> None:
    async with ActorSystem() as system:
        with pytest.raises((ValueError, TypeError), match="name="):
            await system.with_options(name=name).spawn(Worker)  # type: ignore[arg-type]
        assert system.tree().children == ()


async def test_a_group_lists_its_members_in_the_order_of_joining() -> None:
    async with ActorSystem() as system:
        refs = [await system.spawn(Worker) for _ in range(3)]
        for ref in reversed(refs):
            system.join("workers", ref)
            system.join("workers", ref)
        assert system.members("workers") == tuple(reversed(refs))
        system.leave("workers", refs[1])
        system.leave("workers", refs[1])
        system.leave("nobodies", refs[1])
        assert system.members("workers") == (refs[2], refs[0])
        assert system.members("nobodies") == ()


async def test_a_member_leaves_every_group_when_it_ends_for_good_and_stays_across_restarts() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("child", Worker)])
        kept = await supervisor.ask(Supervisor.child, "child")
        lost = await system.spawn(Worker)
        for group in ("a", "b"):
            system.join(group, kept)
            system.join(group, lost)
        kept.kill()
        lost.kill()
        await until(lambda: kept.incarnation == 2 and lost.info().state is State.STOPPED)
        assert system.members("a") == system.members("b") == (kept,)
        await supervisor.stop()
        assert system.members("a") == ()


async def test_an_actor_that_has_ended_cannot_join() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        await ref.stop()
        try:
            system.join("workers", ref)
        except Exception:
            pass
        assert system.members("workers") == (), "nothing will ever take it out again"


async def test_names_and_groups_are_used_from_threads() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        ref = await system.with_options(name="desk", node=node).spawn(Worker)
        await asyncio.to_thread(system.join, "workers", ref)
        assert await asyncio.to_thread(system.whereis, "desk") == ref
        assert await asyncio.to_thread(system.members, "workers") == (ref,)
