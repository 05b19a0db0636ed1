"""A question desk on the web: Starlette in front, a DSPy program on an LM pool behind it, and an end in good order.

Run it with `python examples/04_asgi_service.py`, and then:

    curl -d '{"question": "What is the capital of France?"}' localhost:8000/answer
    curl localhost:8000/ready
    curl localhost:8000/tree

Ctrl-C, or a SIGTERM, ends it: what was asked is still answered. The one argument is another port.
"""

import math
import sys

import dspy
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from promptside import ActorSystem, CancelOnDisconnect, CircuitOpen, Endpoint, LMPool, Program, Service
from promptside.errors import ActorStopped, MailboxFull, PoolSaturated, QueueTimeout
from promptside.pools import PoolUnavailable
from promptside.testing import MockLM

# As slow as a hosted model; for one of those, write Endpoint("openai/gpt-4o-mini").
MODEL = MockLM({"France": "Paris", "Japan": "Tokyo", "default": "I do not know"}, latency=1.0)


async def start(system: ActorSystem) -> Program:
    pool = await LMPool(Endpoint("mock/atlas", engine=MODEL)).start(system)
    return await Program(lambda: dspy.Predict("question -> answer"), name="desk", lm=pool.lm()).start(system)


service = Service(start, name="atlas", drain=20)


async def answer(request: Request) -> JSONResponse:
    question = (await request.json())["question"]
    prediction = await service.app.acall(question=question)
    return JSONResponse({"answer": prediction.answer})


async def ready(request: Request) -> JSONResponse:
    return JSONResponse({"state": service.state}, status_code=200 if service.ready else 503)


async def tree(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{service.system.tree()}\n")


async def busy(request: Request, error: Exception) -> JSONResponse:
    seconds = math.ceil(getattr(error, "retry_after", None) or 1)
    return JSONResponse({"detail": "try again later"}, status_code=503, headers={"Retry-After": str(seconds)})


BUSY = (ActorStopped, CircuitOpen, MailboxFull, PoolSaturated, PoolUnavailable, QueueTimeout)

app = Starlette(
    routes=[Route("/answer", answer, methods=["POST"]), Route("/ready", ready), Route("/tree", tree)],
    lifespan=service.lifespan,
    middleware=[Middleware(CancelOnDisconnect)],
    exception_handlers=dict.fromkeys(BUSY, busy),
)

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    config = uvicorn.Config(app, port=port, timeout_graceful_shutdown=20)
    service.run(uvicorn.Server(config).serve)
