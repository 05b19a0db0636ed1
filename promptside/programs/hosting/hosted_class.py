"""Hosted classes: a module of a running program is called as before, and runs in its actor.

Nothing in a program is replaced by a proxy. A hosted module is the same object with another class: a subclass of its
own that overrides how it is called and how the object is copied. Below the call of a program, `forward` and `aforward`
go to the module's actor, with the version that the call has pinned, and a predictor has the LM of the call. Everywhere
else the module runs plainly: called by its owner directly, in an optimizer, or as the copies that `dspy.BestOfN` makes.

Set by `ProgramSupervisor`; called by DSPy and by other modules; calls the module actors.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import types
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import dspy

from promptside.actors import Actor, ActorRef
from promptside.actors.spi import CURRENT, ThreadRun, ask_in_task, cell_of, descends_from, seconds_until_restart
from promptside.callables import is_async
from promptside.clock import monotonic
from promptside.errors import ActorStopped, ProgramError
from promptside.pools.context.cancel import CallCancelled, CancelToken, current_cancel_token, with_cancel_token
from promptside.pools.context.settings import read_setting, setting
from promptside.programs.hosting.actors import SubmoduleActor
from promptside.programs.hosting.entry import CALL, nearest, original_class, unhosted
from promptside.programs.hosting.parts import Parameter, Part, set_class
from promptside.programs.hosting.request import REQUEST, Request
from promptside.programs.hosting.threads import begin_on, in_thread
from promptside.threads import Heartbeat, where_loop_is

__all__ = ["ask", "copy_of", "host_module"]

A = TypeVar("A", bound=Actor)
P = ParamSpec("P")
R = TypeVar("R")

RESTART = 5.0
"""Seconds for which a call that has not begun waits for the restart of its actor."""

POLL_INTERVAL = 0.01
"""Seconds between two checks whether it runs again."""


class _HostedMixin(dspy.Module):
    """First base of every hosted class. It keeps the module's own class from learning of a subclass."""

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Nothing: a class that keeps a list of its subclasses, or wants arguments of them, does not mean these."""


def host_module(module: dspy.Module) -> None:
    """Have the calls of `module` go to its actor where they are made below a call of its program."""
    original = type(module)
    if "__hosted__" in vars(original):
        return  # it is a part of another program too
    methods: dict[str, Any] = {
        name: _with_metadata_of(getattr(original, name), method)
        for name, method in _METHODS.items()
        if hasattr(original, name)
    }
    names = _ATTRIBUTES if issubclass(original, dspy.Predict) else {"lm"} if issubclass(original, Parameter) else ()
    methods |= {name: _ATTRIBUTES[name] for name in names if not hasattr(original, name)}
    if {"forward", "aforward"} - methods.keys():
        del methods["acall"]  # there is one way in
    shown = {name: getattr(original, name) for name in _SHOWN if hasattr(original, name)}
    # Pickling, dataclasses and `self.__class__(...)` ask an object for its class: they get the original one.
    namespace: dict[str, Any] = {
        **shown,
        **methods,
        "__slots__": (),
        "__hosted__": original,
        "__class__": property(lambda _: original),
    }
    make: Any = type(original)
    set_class(module, make(original.__name__, (_HostedMixin, original), namespace))


_SHOWN = ("__module__", "__qualname__", "__doc__", "__firstlineno__")  # the last is for `inspect`, from 3.13 on


def _with_metadata_of(original: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of the method that `inspect` shows as the original one."""
    copied: Any = method
    return functools.update_wrapper(types.FunctionType(copied.__code__, copied.__globals__), original)


def copy_of(request: Request) -> dspy.Module:
    """A plain copy of a program, as it is for `request`."""
    with setting(REQUEST, request):
        copied: dspy.Module = request.part_of(request.root).module.deepcopy()
    return copied


async def _acall(self: dspy.Module, *args: Any, **kwargs: Any) -> Any:
    """To a `__call__` that stands nearer to the class than `acall`: in a thread, as the synchronous call that it is."""
    request, part = _find(self)
    if request is None or part is None or not _is_called(part.module):
        return await unhosted(self).acall(*args, **kwargs)
    result = await in_thread(lambda: self(*args, **kwargs), request.threads)
    return await result if inspect.isawaitable(result) else result


async def _aforward(self: dspy.Module, *args: Any, **kwargs: Any) -> Any:
    request, part = _find(self)
    if request is None or part is None:
        return await unhosted(self).aforward(*args, **kwargs)
    if _is_inside(self, part, request):
        return await unhosted(part.module).aforward(*args, **kwargs)
    return await ask(ask_in_task, lambda: part.ref, request.attempts, SubmoduleActor.run, args, kwargs)


def _forward(self: dspy.Module, *args: Any, **kwargs: Any) -> Any:
    request, part = _find(self)
    if request is None or part is None:
        return unhosted(self).forward(*args, **kwargs)
    forward = unhosted(part.module).forward
    if _is_inside(self, part, request) or _stays_here(part, forward):
        return forward(*args, **kwargs)
    attempts = request.attempts
    while True:
        try:
            return _run_here(part, lambda: forward(*args, **kwargs))
        except ActorStopped as stopped:
            attempts -= 1
            if not (stopped.started and attempts and _concerns(stopped, part.ref)):
                raise


def _reduce(self: dspy.Module, protocol: Any) -> Any:
    """A copy is a plain module, and, below a program's call, as the version that the call has pinned."""
    request, part = _find(self)
    if part is not None and part.module is not self:
        return part.module.__reduce_ex__(protocol)
    reduced = unhosted(self).__reduce_ex__(protocol)
    if isinstance(reduced, str):
        return reduced
    kind: Any = type(self)
    make, arguments, *rest = reduced
    make, *arguments = (kind.__hosted__ if each is kind else each for each in (make, *arguments))
    if rest and isinstance(rest[0], dict) and request is not None and part is not None:
        rest[0] = {**rest[0], **request.pins(part)}
    return (make, tuple(arguments), *rest)


_METHODS = {"acall": _acall, "forward": _forward, "aforward": _aforward, "__reduce_ex__": _reduce}


def _attribute(name: str) -> property:
    """An attribute of a predictor: below a program's call that of the call, or else of what stands in its place."""

    def get(self: dspy.Predict) -> Any:
        if name not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        request, part = _find(self)
        if request is None or part is None:
            return vars(self)[name]
        of_call = request.lm if name == "lm" else request.pins(part).get(name)
        return _attributes(self, part, name)[name] if of_call is None else of_call

    def put(self: dspy.Predict, value: Any) -> None:
        request, part = _find(self)
        if request is None or part is None:
            vars(self)[name] = value
        elif name in (pins := request.pins(part)):
            pins[name] = value
        else:
            _attributes(self, part, name)[name] = value

    return property(get, put, lambda self: vars(self).__delitem__(name))


def _attributes(module: dspy.Module, part: Part, name: str) -> dict[str, Any]:
    """Those of what stands in the place of `module`, if it has such a one too; else its own."""
    attributes: dict[str, Any] = vars(part.module)
    return attributes if name in attributes else vars(module)


_ATTRIBUTES = {name: _attribute(name) for name in ("lm", "signature", "demos", "config")}


def _find(module: dspy.Module) -> tuple[Request | None, Part | None]:
    """The call of a program around this one, and the part that stands in the place of `module` for it."""
    request = read_setting(REQUEST)
    if not isinstance(request, Request) or not request.whole:
        return None, None
    return request, request.part(module)


def _is_inside(module: dspy.Module, part: Part, request: Request) -> bool:
    """Whether this call runs where it is made: the program's own, in its actor already, or one by the module itself."""
    if part is request.root or descends_from(CURRENT.get(), cell_of(part.ref)):
        return True
    callers = read_setting("caller_modules") or ()  # in threads that contextvars do not reach
    return sum(caller is module for caller in callers) > 1


def _is_called(module: dspy.Module) -> bool:
    """Whether its own `__call__` stands nearer to its class than what is awaited."""
    found, _ = nearest(module, original_class(module), CALL, stop=dspy.Module)
    return "__call__" in found and found.isdisjoint(CALL[1])


def _stays_here(part: Part, forward: Any) -> bool:
    """Whether a synchronous call on the program's event loop runs there, as it does plainly.

    Raises:
        ProgramError: It has a predictor, whose LM call would block the event loop.
    """
    if asyncio._get_running_loop() is not part.ref.node.loop:
        return False
    if not is_async(forward) and any(isinstance(each.module, dspy.Predict) for each in part):
        raise ProgramError(
            f"{part.path!r} was called synchronously on the event loop of its program, which that would block; write "
            f"`await self.{part.path.rpartition('.')[2]}.acall(...)`, or run what calls it in a thread"
        )
    return True


async def ask(
    send: Callable[..., Coroutine[Any, Any, R]],
    ref_of: Callable[[], ActorRef[A]],
    attempts: int,
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Ask an actor that may be restarting: a call that has not begun waits for it, up to 5 seconds.

    Args:
        send: `ActorRef.ask` or `ask_in_task`.
        ref_of: Gives its reference, which is another one when a supervisor above it has been restarted.
        attempts: How often the call is made, at most, when the actor crashes under it; >= 1.
        method: As in `ActorRef.ask`.
        *args: For the method.
        **kwargs: For the method.

    Raises:
        ActorStopped: It was stopped or crashed during the call, or was not back in time.
        Exception: Whatever the method raised.
    """
    deadline = monotonic() + RESTART
    while True:
        ref = ref_of()
        try:
            return await send(ref, method, *args, **kwargs)
        except ActorStopped as stopped:
            if not _concerns(stopped, ref):
                raise
            if stopped.started:
                attempts -= 1
                if attempts == 0:
                    raise
                deadline = monotonic() + RESTART
            elif (seconds := _until_restart(ref, ref_of)) is None or monotonic() > deadline:
                raise
            else:
                await asyncio.sleep(max(seconds, POLL_INTERVAL))


def _concerns(stopped: ActorStopped, ref: ActorRef[Any]) -> bool:
    """Whether this actor stopped, or one below it that it had for the call alone; not another one that it called."""
    return f"{stopped.path}/".startswith(f"{ref.path}/")


def _until_restart(ref: ActorRef[Any], ref_of: Callable[[], ActorRef[Any]]) -> float | None:
    """Seconds until the actor, or what it is a part of, is expected back; None if it is not."""
    return 0.0 if ref_of() != ref else seconds_until_restart(ref)


def _run_here(part: Part, function: Callable[[], R]) -> R:
    """Run a synchronous module in the calling thread, on behalf of its actor."""
    outer, token = current_cancel_token() or CancelToken(), CancelToken()
    while not (run := ThreadRun(cell_of(part.ref), SubmoduleActor.run_in_callers_thread, token.cancel)).enter():
        _wait_until_taken(part, outer)
    try:
        with outer.on_cancel(run.cancel), with_cancel_token(token):
            part.refresh()
            result = function()
    except CallCancelled:
        _check_run(run, outer)
        raise
    finally:
        run.end()
    _check_run(run, outer)
    return result


def _check_run(run: ThreadRun, outer: CancelToken) -> None:
    """Raise what has ended the actor's side of a run, if anything has; `CallCancelled` once the caller has gone."""
    outer.check()
    if run.error is not None:
        raise run.error


def _wait_until_taken(part: Part, outer: CancelToken) -> None:
    """Wait, in a thread, for an actor that takes no messages now, as while it is restarted."""
    ref, heartbeat = part.ref, Heartbeat()
    asked = begin_on(ref, ask(ActorRef.ask, lambda: part.ref, 1, SubmoduleActor.run_in_callers_thread))
    with outer.on_cancel(asked.cancel):
        try:
            while not concurrent.futures.wait((asked,), heartbeat.SECONDS).done:
                if heartbeat.missed(ref.node.loop) >= heartbeat.MAX_MISSED:
                    raise ProgramError(
                        f"the event loop of the program is blocked: {where_loop_is(ref.node.loop)}. Code there that "
                        "waits for threads, such as `dspy.Parallel` or `batch` in an `aforward`, must do so in a "
                        "thread: `await dspy.asyncify(...)(...)`"
                    )
        except BaseException:
            asked.cancel()
            raise
    outer.check()
    try:
        asked.result()
    except concurrent.futures.CancelledError:
        raise CallCancelled("the caller of the program has gone") from None
