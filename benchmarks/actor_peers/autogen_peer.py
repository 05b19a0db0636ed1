"""autogen-core: agents behind the one queue of a `SingleThreadedAgentRuntime`; a task per message."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass

from autogen_core import (
    AgentId,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TopicId,
    TypeSubscription,
    message_handler,
)

from benchmarks.actor_peers import Peer
from benchmarks.report import Unsupported

__all__ = ["Subject"]


@dataclass
class Value:
    value: int


@dataclass
class Note:
    value: int


@dataclass
class Total:
    pass


class Echo(RoutedAgent):
    def __init__(self) -> None:
        super().__init__("echo")
        self.count = 0

    @message_handler
    async def echo(self, message: Value, ctx: MessageContext) -> Value:
        return message

    @message_handler
    async def note(self, message: Note, ctx: MessageContext) -> None:
        self.count += 1

    @message_handler
    async def total(self, message: Total, ctx: MessageContext) -> Value:
        return Value(self.count)


class Subject(Peer[AgentId]):
    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        self._keys = map(str, itertools.count())
        self._runtime = SingleThreadedAgentRuntime()
        await Echo.register(self._runtime, "echo", Echo)
        # A tell is a publication to a topic: the key of the agent is the topic's source.
        await self._runtime.add_subscription(TypeSubscription(topic_type="note", agent_type="echo"))
        self._runtime.start()
        yield
        await self._runtime.stop()

    async def spawn(self) -> AgentId:
        return await self._runtime.get("echo", next(self._keys), lazy=False)

    async def stop(self, ref: AgentId) -> None:
        raise Unsupported("an agent ends only with its runtime")

    async def ask(self, ref: AgentId, times: int) -> object:
        answer = Value(-1)
        for value in range(times):
            answer = await self._runtime.send_message(Value(value), ref)
        return answer.value

    async def tell(self, ref: AgentId, times: int) -> None:
        topic = TopicId("note", ref.key)
        for value in range(times):
            await self._runtime.publish_message(Note(value), topic)

    async def total(self, ref: AgentId) -> int:
        answer: Value = await self._runtime.send_message(Total(), ref)
        return answer.value
