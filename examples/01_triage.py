"""Five support tickets, two module actors, two LM workers; one of each is struck down in mid-run.

Run it with `make demo`, or `python examples/01_triage.py`. It uses a small model on this machine, unless
GEMINI_API_KEY, OPENAI_API_KEY or PROMPTSIDE_MODEL (a model as `dspy.LM` names it) selects a hosted one.
"""

import asyncio
import functools
import os
import sys
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any, Literal

print("promptside: five support tickets, triaged under supervision", flush=True)

# Prices come from the table that DSPy ships, without asking the network for a newer one.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy  # noqa: E402 - slow to import, so the line above is printed first

from promptside import ActorRef, ActorStopped, ActorSystem, Event, Supervisor  # noqa: E402
from promptside.pools import Capabilities, EmbeddedModelUnavailable, EmbeddedServer, Endpoint, LMPool  # noqa: E402
from promptside.programs import ModuleActor  # noqa: E402

TICKETS = {
    "INC-001": ("Our EU customers get an HTTP 500 at checkout since 9:40. Nobody can pay.", "outage", "high"),
    "INC-002": ("I was promised a refund two weeks ago and it has not arrived yet.", "billing", "medium"),
    "INC-003": ("It would be nice to export all of our projects in bulk.", "feature", "low"),
    "INC-004": ("Since the SSO change our whole team is locked out of the workspace.", "account", "high"),
    "INC-005": ("The CSV export shows every time stamp in the wrong time zone.", "bug", "medium"),
}


class Triage(dspy.Signature):
    """Sort a customer's support ticket."""

    ticket: str = dspy.InputField()
    category: Literal["outage", "billing", "feature", "account", "bug"] = dspy.OutputField()
    urgency: Literal["high", "medium", "low"] = dspy.OutputField()


def choose_endpoint(server: EmbeddedServer | None) -> Endpoint:
    """The hosted model that the environment selects, or the embedded one."""
    if server is None:
        default = "gemini/gemini-2.5-flash-lite" if os.environ.get("GEMINI_API_KEY") else "openai/gpt-4o-mini"
        return Endpoint(os.environ.get("PROMPTSIDE_MODEL", default))
    # Told that the model follows a JSON schema, DSPy's JSONAdapter sends one, and every answer is valid.
    params = frozenset({"temperature", "max_tokens", "response_format"})
    return Endpoint(
        f"openai/{server.model}",
        api_base=server.url,
        api_key="none",
        supports=Capabilities(response_schema=True, params=params),
    )


class Stage:
    """Strikes two actors down while they work, and tells what the event bus says about it."""

    TOLD = ("actor.crashed", "actor.restarted", "lm.attempt.failed", "supervisor.gave_up", "message.dead")

    def __init__(self, system: ActorSystem, victims: dict[str, ActorRef[Any]]) -> None:
        self.began = time.perf_counter()
        self.counts: Counter[str] = Counter()
        self._victims = victims
        self._loop = asyncio.get_running_loop()
        system.events.on("*", self.notice)

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.began:6.2f} s  {text}", flush=True)

    def notice(self, event: Event) -> None:
        """Called for each event, in the thread where it happens."""
        self.counts[event.type] += 1
        if event.type in self.TOLD:
            facts = ", ".join(
                f"{key}={event.data[key]}" for key in ("error", "worker", "reason") if event.data.get(key)
            )
            self.say(f"  {event.type:18} {event.source}  ({facts})")
        elif event.type == "lm.attempt.started" and self.counts[event.type] == 2:
            self._strike_soon(event.data["worker"], "an LM worker, with a request inside it")
        elif event.type == "module.started" and self.counts[event.type] == 4:
            self._strike_soon(event.source, "a module actor, with a ticket inside it")

    def _strike_soon(self, path: str, what: str) -> None:
        def strike() -> None:
            self.say(f"  we kill            {path}: {what}")
            self._victims[path].kill()

        self._loop.call_soon_threadsafe(self._loop.call_later, 0.2, strike)


async def triage(stage: Stage, actor: ActorRef[ModuleActor], key: str) -> dspy.Prediction:
    """One ticket. A ticket that was inside a crash may be asked again, because triage changes nothing."""
    for _ in range(3):
        try:
            return await actor.ask(ModuleActor.call, {"ticket": TICKETS[key][0]})
        except ActorStopped as stopped:
            inside = "was inside the crash" if stopped.started else "found the actor restarting"
            stage.say(f"  {key} {inside}; this example's policy: ask again")
            await asyncio.sleep(stopped.retry_after or 0.05)
    raise RuntimeError(f"{key} got no answer in three tries")


async def run(server: EmbeddedServer | None) -> bool:
    async with ActorSystem("triage") as system:
        pool = await LMPool(choose_endpoint(server), workers=2).start(system)
        names = ["triage-1", "triage-2"]
        module = functools.partial(dspy.Predict, Triage)
        specs = [ModuleActor.child_spec(name, module, lm=pool.lm(cache=False)) for name in names]
        supervisor = await Supervisor.start(system, specs, name="desk")
        desk = [supervisor.child(name) for name in names]
        print(f"\n{system.tree()}\n")

        stage = Stage(system, {ref.path: ref for ref in desk} | pool.worker_refs())
        waiting = list(TICKETS)
        right = {"category": 0, "urgency": 0}
        answered: dict[str, dspy.Prediction] = {}

        async def clerk(actor: ActorRef[ModuleActor]) -> None:
            while waiting:
                key = waiting.pop(0)
                answered[key] = answer = await triage(stage, actor, key)
                _, category, urgency = TICKETS[key]
                right["category"] += answer.category == category
                right["urgency"] += answer.urgency == urgency
                gold = (
                    "" if (answer.category, answer.urgency) == (category, urgency) else f"  gold: {category}/{urgency}"
                )
                stage.say(f"{key} -> {answer.category}/{answer.urgency} ({actor.path}){gold}")

        with dspy.context(adapter=dspy.JSONAdapter()):
            await asyncio.gather(*(clerk(actor) for actor in desk))
        seconds = time.perf_counter() - stage.began

        print(f"\n{system.tree()}\n")
        (stats,) = pool.stats().values()
        print(f"answers    {len(answered)} of {len(TICKETS)} tickets")
        print(f"gold       category {right['category']}/{len(TICKETS)}, urgency {right['urgency']}/{len(TICKETS)}")
        print(f"LM calls   {stage.counts['lm.call.started']}, in {stats['attempts']} attempts")
        print(f"tokens     {stats['input_tokens']} in, {stats['output_tokens']} out")
        print(f"restarts   {stage.counts['actor.restarted']}")
        print(f"seconds    {seconds:.1f}")
        if server is not None:
            print(f"\n{server.model} is so small that its triage is mostly guesswork; its answers are valid, not good.")
            print("Set GEMINI_API_KEY, OPENAI_API_KEY or PROMPTSIDE_MODEL to run this on a hosted model.")
        return len(answered) == len(TICKETS)


def main() -> int:
    hosted = any(os.environ.get(key) for key in ("PROMPTSIDE_MODEL", "GEMINI_API_KEY", "OPENAI_API_KEY"))
    try:
        with nullcontext() if hosted else EmbeddedServer(max_concurrency=2) as server:
            if server is not None:
                print(f"model: {server.model}, embedded, loaded in {server.load_seconds:.1f} s", flush=True)
            return 0 if asyncio.run(run(server)) else 1
    except EmbeddedModelUnavailable as missing:
        print(f"\n{missing}\nOr set GEMINI_API_KEY, OPENAI_API_KEY or PROMPTSIDE_MODEL.", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
