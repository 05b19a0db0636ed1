"""A server of OpenAI's chat completions, Responses and text completions, with what it was sent.

Only Responses are streamed: lm15 asks for a stream of those to end them at a `stop` text, which their API lacks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["OpenAIServer", "openai_server"]


@dataclass
class OpenAIServer:
    """A running server.

    Attributes:
        url: For `api_base`.
        said: The text of an answer to this body.
        requests: Path, headers with lower-case names, and body of each request.
    """

    url: str
    said: Callable[[Any], str] = lambda body: "Paris"
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        """The body of the answer; as many choices as are asked for."""
        text, count = self.said(body), body.get("n") or 1
        base = {"id": "x", "created": 1, "created_at": 1, "model": body["model"]}
        if path.endswith("/responses"):
            parts = [{"type": "output_text", "text": text, "annotations": []}]
            said = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": parts}
            usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
            return {**base, "object": "response", "status": "completed", "output": [said], "usage": usage}
        whole = {"message": {"role": "assistant", "content": text}}
        choice = whole if path.endswith("/chat/completions") else {"text": text}
        choices = [{"index": index, "finish_reason": "stop", **choice} for index in range(count)]
        usage = {"prompt_tokens": 10, "completion_tokens": 5 * count, "total_tokens": 10 + 5 * count}
        kind = "chat.completion" if choice is whole else "text_completion"
        return {**base, "object": kind, "choices": choices, "usage": usage}


def _events(response: dict[str, Any]) -> bytes:
    """An answer of the Responses API as a stream."""
    text = response["output"][0]["content"][0]["text"]
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}},
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "m", "delta": text},
        {"type": "response.completed", "response": response},
    ]
    return b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)


@contextmanager
def openai_server() -> Iterator[OpenAIServer]:
    """One that runs within."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = self.path
            served.requests.append((path, {name.lower(): value for name, value in self.headers.items()}, body))
            answer = served.answer(path.partition("?")[0], body)
            streamed = answer["object"] == "response" and body.get("stream") is True
            data = _events(answer) if streamed else json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream" if streamed else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        served = OpenAIServer(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
