"""What Google says in the body of an error. With each fault in `test_providers.py`; here what does not happen there."""

from __future__ import annotations

import pytest
from dspy.lm15 import AuthError, Message, RateLimitError, Request

from promptside.pools.clients.endpoint import open_client
from promptside.testing import FakeServer, Fault
from tests.support.pools import endpoint


async def test_a_key_that_google_does_not_take_is_the_credentials_error_and_no_bad_request() -> None:
    with FakeServer() as server:
        client = open_client(endpoint(server, "gemini/gemini-fake", api_base=server.url_for("gemini")))
        server.fail(Fault.status(400, code="API_KEY_INVALID", message="API key not valid."), times=2)
        asked = Request(model="gemini/gemini-fake", messages=(Message.user("hello"),))
        with pytest.raises(AuthError, match="API key not valid"):
            await client.complete(asked)
        with pytest.raises(AuthError, match="API key not valid"):
            await anext(client.stream(asked))
        await client.aclose()


async def test_a_header_that_a_gateway_has_set_comes_before_what_google_says() -> None:
    with FakeServer() as server:
        client = open_client(endpoint(server, "gemini/gemini-fake", api_base=server.url_for("gemini")))
        server.fail(Fault.status(429, retry_after=5, headers={"retry-after": "3"}))
        with pytest.raises(RateLimitError) as caught:
            await client.complete(Request(model="gemini/gemini-fake", messages=(Message.user("hello"),)))
        await client.aclose()
    assert caught.value.retry_after == 3


async def test_the_connections_to_gemini_are_kept_and_closed_as_others_are() -> None:
    asked = Request(model="gemini/gemini-fake", messages=(Message.user("hello"),))
    with FakeServer("hi") as server:
        client = open_client(endpoint(server, "gemini/gemini-fake", api_base=server.url_for("gemini")))
        for fault in (None, Fault.status(429), None):
            server.script([fault])
            try:
                assert (await client.complete(asked)).text == "hi"
            except RateLimitError:
                continue
        assert (server.total_connections, server.connections) == (1, 1)
        await client.aclose()
        await server.until(lambda: server.connections == 0)
