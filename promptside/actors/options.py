"""The options of an actor class, and which of its methods may be asked.

`Actor` has them as `__options__`; cells and references read them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from promptside.actors.methods import called_by_name, find_name, kind_of, stands_as_it_is, why_not_found
from promptside.actors.stream import producer
from promptside.callables import label_of, name_of
from promptside.checks import is_count, is_number
from promptside.texts import is_word, repr_of

if TYPE_CHECKING:
    from promptside.actors.envelope import Handler

__all__ = ["DEFAULTS", "ActorOptions", "Overflow", "is_actor"]

Overflow = Literal["reject", "drop_oldest", "drop_newest"]


@dataclass(slots=True, kw_only=True)
class ActorOptions:
    """The options and the messages of an actor class.

    Attributes:
        max_concurrency: Messages handled at one time.
        expected: Exceptions of ask handlers that are answers, not crashes.
        mailbox: Bound of the mailbox in messages; `math.inf` for none.
        overflow: How a full mailbox treats a message.
        timeout: Default timeout of asks in seconds.
        shutdown: Default seconds that a stop may take before the actor is cancelled.
        trap_exit: Whether `Exit` of linked actors is received as a message.
        handlers: From the function named in an ask to the function that runs; filled as functions are seen.
        streams: The same for async generator methods, whose functions are wrapped to feed a channel.
        starts: Whether the class overrides `on_start`.
        stops: Whether the class overrides `on_stop`.
    """

    max_concurrency: int = 1
    expected: tuple[type[BaseException], ...] = ()
    mailbox: float = 1000
    overflow: Overflow = "reject"
    timeout: float = 5.0
    shutdown: float = 5.0
    trap_exit: bool = False
    starts: bool = False
    stops: bool = False
    handlers: dict[Any, Handler] = field(default_factory=dict)
    streams: dict[Any, Handler] = field(default_factory=dict)

    def resolve(self, actor_class: type[Any], method: Any, *, stream: bool = False) -> Handler:
        """The function that runs when `method` is asked of `actor_class`; the override, if there is one.

        Raises:
            TypeError: `method` is not a public async method of the class; of a stream, an async generator method.
        """
        label = label_of(method)
        if issubclass(type(method), MethodType) and not issubclass(type(method.__self__), type):
            raise TypeError(
                f"{label} is bound to an object; name it on the class: {actor_class.__name__}.{name_of(method)}"
            )
        name = find_name(actor_class, method)
        if name is None:
            raise TypeError(why_not_found(actor_class, method, label))
        if name.startswith(("_", "on_")) or name == "receive" or _is_base_class_own(actor_class, name):
            raise TypeError(
                f"{label} is a hook, private or the base class's own, and cannot be asked; name a public method"
            )
        kind = kind_of(actor_class, name)
        if kind == "stream" and not stream:
            raise TypeError(f"{label} is an async generator; read it with `async for x in ref.stream({label}, ...)`")
        if kind == "coroutine" and stream:
            raise TypeError(f"{label} yields nothing; call it with `await ref.ask({label}, ...)`")
        if kind is None:
            raise TypeError(f"{label} is not async; declare it as `async def {name}(self, ...)`")
        if kind == "context manager":
            raise TypeError(f"{label} makes a context manager, which is for the actor alone; name an async method")
        own: Any = getattr(actor_class, name)
        run = own if stands_as_it_is(actor_class, name) else called_by_name(actor_class, name, kind)
        handler: Handler = producer(run) if stream else run
        if getattr(actor_class, name) is own:  # else each access makes another object, to be looked up again
            (self.streams if stream else self.handlers)[method] = handler
        return handler

    def change(self, class_name: str, given: dict[str, Any], *, starts: bool, stops: bool) -> ActorOptions:
        """The options of a subclass.

        Raises:
            ValueError: An option is not valid; the message names it.
        """
        own = {name: value for name, value in given.items() if value is not None}
        options = replace(self, **own, starts=starts, stops=stops, handlers={}, streams={})
        options._validate(class_name)
        return options

    def _validate(self, class_name: str) -> None:
        def check(field: str, valid: bool, remedy: str) -> None:
            if not valid:
                raise ValueError(f"class {class_name}(Actor, {field}={repr_of(getattr(self, field))}): {remedy}")

        expected = self.expected
        check("max_concurrency", is_count(self.max_concurrency), "give a whole number >= 1")
        answers = isinstance(expected, tuple) and all(map(_can_answer, expected))
        check("expected", answers, "give a tuple of exception classes, none that ends a task or the process")
        check("mailbox", is_number(self.mailbox) and self.mailbox >= 1, "give a bound of at least 1, or math.inf")
        check("overflow", is_word(self.overflow, *get_args(Overflow)), f"use one of {get_args(Overflow)}")
        check("timeout", is_number(self.timeout) and self.timeout > 0, "give seconds > 0, or math.inf")
        check("shutdown", is_number(self.shutdown) and self.shutdown >= 0, "give seconds >= 0 (0 kills), or math.inf")
        check("trap_exit", isinstance(self.trap_exit, bool), "give True or False")


DEFAULTS: Final = ActorOptions()
"""The options of `Actor` itself."""


def is_actor(candidate: object) -> bool:
    """Whether it is an instance of `Actor`, which stands above the modules that ask."""
    return isinstance(getattr(type(candidate), "__options__", None), ActorOptions)


def _is_base_class_own(actor_class: type[Any], name: str) -> bool:
    definer = next((base for base in actor_class.__mro__ if name in vars(base)), None)
    return definer is not None and vars(definer).get("__options__") is DEFAULTS


def _can_answer(error: object) -> bool:
    if not (isinstance(error, type) and issubclass(error, BaseException)) or error is BaseException:
        return False
    return not issubclass(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit)
