"""A FastAPI application over a supervised program: typed requests, and errors as status codes.

`python examples/12_fastapi.py` asks it a few things; `python examples/12_fastapi.py 8000` serves it on that port.
"""

import math
import sys

import dspy
import uvicorn
from dspy.lm15 import Request as LMRequest
from dspy.lm15 import ServerError
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from promptside import ActorSystem, BreakerConfig, CancelOnDisconnect, CircuitOpen, Endpoint, LMPool, Program, Service
from promptside.errors import ActorStopped, CallTimeout, MailboxFull, PoolSaturated, QueueTimeout
from promptside.pools import PoolUnavailable, RetryConfig
from promptside.testing import MockLM


def model(request: LMRequest) -> str:
    if "Atlantis" in str(request.messages):
        raise ServerError("bad gateway")
    return "Paris"


async def start(system: ActorSystem) -> Program:
    endpoint = Endpoint("mock/atlas", engine=MockLM(model))
    pool = LMPool(endpoint, retry=RetryConfig(attempts=1), breaker=BreakerConfig(min_calls=2))
    await pool.start(system)
    desk = Program(lambda: dspy.Predict("question -> answer"), name="desk", lm=pool.lm(cache=False), timeout=30)
    return await desk.start(system)


service = Service(start, name="atlas", drain=20)
app = FastAPI(lifespan=service.lifespan)
app.add_middleware(CancelOnDisconnect)


class Question(BaseModel):
    question: str = Field(min_length=1, max_length=1000)


class Answer(BaseModel):
    answer: str


@app.post("/answer")
async def answer(asked: Question) -> Answer:
    prediction = await service.app.acall(question=asked.question)
    return Answer(answer=prediction.answer)


@app.exception_handler(ActorStopped)
@app.exception_handler(CircuitOpen)
@app.exception_handler(MailboxFull)
@app.exception_handler(PoolSaturated)
@app.exception_handler(PoolUnavailable)
@app.exception_handler(QueueTimeout)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    seconds = math.ceil(getattr(error, "retry_after", None) or 1)
    return JSONResponse({"detail": "try again later"}, status_code=503, headers={"Retry-After": str(seconds)})


@app.exception_handler(CallTimeout)
async def too_slow(request: Request, error: CallTimeout) -> JSONResponse:
    return JSONResponse({"detail": f"no answer within {error.timeout:g} s"}, status_code=504)


@app.exception_handler(dspy.LMError)
async def bad_gateway(request: Request, error: dspy.LMError) -> JSONResponse:
    return JSONResponse({"detail": type(error).__name__}, status_code=502)


def show() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        for question in ("What is the capital of France?", *["And of Atlantis?"] * 3):
            response = client.post("/answer", json={"question": question})
            print(response.status_code, response.json().get("answer") or response.json()["detail"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        config = uvicorn.Config(app, port=int(sys.argv[1]), timeout_graceful_shutdown=20)
        service.run(uvicorn.Server(config).serve)
    else:
        show()
