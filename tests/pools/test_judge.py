"""`judge` and `provider_errors`: what a body says, whoever the server is. With servers in `test_answers.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dspy import lm15

from promptside.pools.clients.judge import FINISH_REASONS, fault_of, is_last, without_usage
from promptside.pools.clients.provider_errors import CODES, MAX_TEXT, STATUSES, WORDS, read_error


def choice(reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": "hi", **message}}


GOOD = {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice()], "usage": {"prompt_tokens": 1}}
FILTERED = [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": True}, "sexual": {"filtered": False}}}]

# -- errors ------------------------------------------------------------------------------------------------------------

LONG = {
    "openai": {"code": "context_length_exceeded", "message": "too long"},
    "vllm": "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens",
    "vllm, newer": "The decoder prompt (length 9254) is longer than the maximum model length of 4096.",
    "vllm, output": "'max_tokens' is too large: 5000. This model's maximum context length is 4096 tokens",
    "vllm, nothing left": "max_tokens must be at least 1, got -7584.",
    "vertex": "The input token count is 1048600 but model only supports up to 1048576",
    "siliconflow": "length of prompt_tokens (57535) must be less than max_seq_len (32768).",
    "tabby": "Prompt length 9000 is greater than max_seq_len 4096",
    "volcengine": "Total tokens of image and text exceed max message tokens",
    "qianfan": "Prompt tokens too long",
    "tensorrt": "default_max_tokens (-900) must be greater than 0",
    "snowflake": "max tokens of 8192 exceeded",
    "sglang": "The input (9000 tokens) is longer than the model's context length (4096 tokens).",
    "llama.cpp": {"code": 400, "type": "exceed_context_size_error", "message": "request exceeds it", "n_ctx": 4096},
    "llama.cpp, batch": "input is too large to process. increase the physical batch size",
    "tgi": "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens",
    "azure": "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 509178 tokens.",
    "anthropic": "prompt is too long: 208310 tokens > 200000 maximum",
    "anthropic by litellm": 'litellm.BadRequestError: AnthropicException - b\'{"type":"error","message":"input length '
    "and `max_tokens` exceed context limit: 179413 + 32768 > 200000\"}'",
    "bedrock": "Input is too long for requested model.",
    "gemini": "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576).",
    "mistral": "Prompt contains 70000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "perplexity": "The total length of all messages is too long.",
    "xai": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "moonshot": "Invalid request: Your request exceeded model token limit: 8192",
    "minimax": "invalid params, context window exceeds limit (2013)",
    "github": {"code": "tokens_limit_reached", "message": "Request body too large for gpt-4o model. Max size: 8000."},
    "groq": "Please reduce the length of the messages or completion.",
    "groq, a minute": "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 9226, please",
    "ds4": {"type": "context_exceeded", "message": "Prompt tokens (9) exceeds context size (4)"},
    "rkllm": "Prompt is 11543 tokens but the model context window is 4096 tokens.",
    "litellm": {"type": "ContextWindowExceededError", "message": "no"},
    "nested": {"message": "Provider returned error", "metadata": {"raw": '{"error":{"message":"prompt is too long"}}'}},
    "a list": [{"msg": "prompt is too long"}],
}


@pytest.mark.parametrize("status", [None, 400, 413, 500])
@pytest.mark.parametrize("server", LONG)
def test_a_prompt_that_is_too_long_is_known_whoever_says_so(server: str, status: int | None) -> None:
    for body in ({"error": LONG[server]}, {"object": "error", "message": LONG[server], "code": 400}):
        assert type(read_error(body).error(status)) is lm15.ContextLengthError, body


RATES = [
    "This request would exceed your organization's rate limit of 40,000 input tokens per minute.",
    "request reached organization TPD rate limit, current: 1506556, limit: 1500000",
    "Too many tokens per day, please wait before trying again.",
    "Tokens per minute limit exceeded - too many tokens processed.",
    "Quota exceeded for metric: generate_content_free_tier_input_token_count, limit: 250000",
    "Rate limit reached on tokens per min. Limit: 30000, Used 29000, Requested 2000. Please try again in 1.2s.",
]


@pytest.mark.parametrize("status", [None, 429])
@pytest.mark.parametrize("text", RATES)
def test_a_rate_of_tokens_is_no_prompt_that_is_too_long(text: str, status: int | None) -> None:
    assert type(read_error({"error": {"message": text}}).error(status)) is lm15.RateLimitError


ERRORS: list[tuple[object, int | None, type[Exception], int | None]] = [
    ({"error": {"code": 429, "message": "slow"}}, None, lm15.RateLimitError, 429),
    ({"error": {"code": "429", "message": "slow"}}, None, lm15.RateLimitError, 429),
    ({"error": {"status": "RESOURCE_EXHAUSTED"}}, None, lm15.RateLimitError, 429),
    ({"error": "429 Too Many Requests"}, None, lm15.RateLimitError, 429),
    ({"error": {"type": "TooManyRequests", "message": ""}}, None, lm15.RateLimitError, 429),
    ({"error": {"code": 400, "message": "no such field"}}, None, lm15.InvalidRequestError, 400),
    ({"error": {"type": "invalid_request_error", "message": "no"}}, None, lm15.InvalidRequestError, 400),
    ({"error": {"message": "TimeoutError", "type": "GatewayTimeout", "code": 504}}, None, lm15.TimeoutError, 504),
    ({"error": {"message": "quota exceeded"}}, None, lm15.RateLimitError, None),
    ({"error": "the model is overloaded, come back later"}, None, lm15.ServerError, None),
    ({"error": {"message": "it went wrong"}}, None, lm15.ProviderError, None),
    # A prompt that a filter refused, whatever the status.
    (
        {"code": "permission-denied", "error": "Content violates usage guidelines. "},
        403,
        lm15.InvalidRequestError,
        400,
    ),
    ({"error": "Your input was flagged for x. No credits were charged."}, 403, lm15.InvalidRequestError, 400),
    (
        {"error": {"message": "user sensitive words detected", "code": "sensitive_words_detected"}},
        500,
        lm15.InvalidRequestError,
        400,
    ),
    ({"error": {"message": "input new_sensitive (1026)"}}, 500, lm15.InvalidRequestError, 400),
    ({"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}, None, lm15.InvalidRequestError, 400),
    ({"error": {"message": "Your account has been flagged for abuse"}}, 403, lm15.AuthError, 403),
    ({"error": {"message": "the moderation service is unavailable"}}, 500, lm15.ServerError, 500),
    # A limit of the answer, which no shorter prompt helps.
    (
        {"message": "The maximum tokens you requested exceeds the model limit of 32768."},
        400,
        lm15.InvalidRequestError,
        400,
    ),
    # An account or a model that this endpoint does not serve.
    (
        {"error": {"type": "invalid_request_error", "message": "You have reached your specified API usage limits."}},
        400,
        lm15.BillingError,
        400,
    ),
    (
        {"error": "Your team has used all available credits or reached its monthly spending limit"},
        429,
        lm15.BillingError,
        429,
    ),
    ({"error": {"code": "organization_restricted", "message": "no"}}, 400, lm15.BillingError, 400),
    ({"error": {"message": "This organization has been disabled."}}, 400, lm15.BillingError, 400),
    ({"error": {"type": "budget_exceeded", "message": "no"}}, 400, lm15.BillingError, 400),
    (
        {"error": {"message": "You have reached your usage limit, come back in 5 minutes"}},
        429,
        lm15.RateLimitError,
        429,
    ),
    ({"error": {"message": "The requested model is not supported."}}, 400, lm15.UnsupportedModelError, 400),
    ({"error": {"code": "model_not_supported"}}, 400, lm15.UnsupportedModelError, 400),
    ({"message": "The provided model identifier is invalid."}, 400, lm15.UnsupportedModelError, 400),
    (
        {"message": "Invocation of model ID a.b-v1:0 with on-demand throughput isn\u2019t supported."},
        400,
        lm15.UnsupportedModelError,
        400,
    ),
    (
        {"error": {"message": "Your organization must be verified to stream this model."}},
        400,
        lm15.UnsupportedModelError,
        400,
    ),
    ({"error": {"message": "Streaming with this model is slow: n must be 1"}}, 400, lm15.InvalidRequestError, 400),
    ({"code": "Throttling", "message": "slow"}, None, lm15.RateLimitError, 429),
    ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, None, lm15.RateLimitError, 429),
    ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, None, lm15.BillingError, None),
    ({"error": {"code": "insufficient_quota", "message": "no"}}, 429, lm15.BillingError, 429),
    ({"error": {"message": "Your credit balance is too low to access the API"}}, 400, lm15.BillingError, 400),
    ({"error": {"message": "You have insufficient credits to make this request."}}, 400, lm15.BillingError, 400),
    ({"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}}, 402, lm15.BillingError, 402),
    ({"error": {"code": "model_decommissioned", "message": "gone"}}, 400, lm15.UnsupportedModelError, 400),
    ({"error": {"message": "The model `m` has been decommissioned"}}, 400, lm15.UnsupportedModelError, 400),
    ({"error": {"code": "DeploymentNotFound", "message": "no"}}, 404, lm15.UnsupportedModelError, 404),
    ({"error": {"message": "No endpoints found matching your data policy"}}, 404, lm15.UnsupportedModelError, 404),
    ("<html>404 page not found</html>", 404, lm15.InvalidRequestError, 404),
    ({"error": {"code": "rate_limit_error", "type": "invalid_request_error"}}, 400, lm15.RateLimitError, 429),
    ({"error": {"code": 429, "message": "upstream"}}, 502, lm15.RateLimitError, 429),
    ({"error": {"type": "invalid_request_error", "message": "no"}}, 401, lm15.AuthError, 401),
    (
        {"error": {"message": "Unsupported parameter: 'x' is not supported with this model"}},
        400,
        lm15.InvalidRequestError,
        400,
    ),
    ({"error": {"message": "max_tokens exceeds the maximum output"}}, 400, lm15.InvalidRequestError, 400),
    ("", 503, lm15.ServerError, 503),
    ("\udcff", 529, lm15.ServerError, 529),
]
"""A body, its status, and what is made of both: a type and a status."""


@pytest.mark.parametrize(("body", "status", "kind", "means"), ERRORS)
def test_an_error_means_the_same_with_a_status_or_without(
    body: object, status: int | None, kind: type[Exception], means: int | None
) -> None:
    error = read_error(body).error(status)
    assert (type(error), error.status) == (kind, means)


def test_a_text_of_any_length_is_read_at_its_ends_and_told_in_part() -> None:
    page = "prompt is too long: " + "word exceeds " * 100_000 + "\ud83d"
    said = read_error({"error": {"message": page}})
    assert said.kind(400)[0] is lm15.ContextLengthError
    assert len(said.message) == MAX_TEXT + 1
    assert said.message.endswith("\ufffd"), "half a surrogate pair cannot be written anywhere"


@pytest.mark.parametrize("status", [None, 400, 500])
def test_every_code_of_the_tables_means_what_they_say(status: int | None) -> None:
    for kind, codes in CODES.items():
        assert {type(read_error({"error": {"code": code}}).error(status)) for code in codes} == {kind}
    for number, words in WORDS.items():
        kind = STATUSES.get(number) or (lm15.ServerError if number >= 500 else lm15.InvalidRequestError)
        for word in words:
            for spelt in (word, f"{word}_error", word.upper(), "".join(part.title() for part in word.split("_"))):
                told = read_error({"error": {"type": spelt}}).error(status)
                assert isinstance(told, kind) or (status is not None and number in (400, 500, 502, 503)), (spelt, told)


@pytest.mark.parametrize(
    "body", [None, 7, [], {}, {"error": None}, [[[[[[[[{}]]]]]]]], {"error": {"error": {"error": 1}}}]
)
def test_a_body_of_any_shape_is_read(body: object) -> None:
    assert type(read_error(body).error(500)) is lm15.ServerError


# -- answers -----------------------------------------------------------------------------------------------------------

ANSWERS: list[Any] = [
    GOOD,
    {**GOOD, "error": None},
    {**GOOD, "error": {}},
    {**GOOD, "error": {"message": "", "code": None}},
    {**GOOD, "prompt_filter_results": FILTERED},
    {**GOOD, "base_resp": {"status_code": 0, "status_msg": ""}},
    {**GOOD, "choices": [choice("", content=None)]},
    {**GOOD, "choices": [choice(None)]},
    {**GOOD, "choices": [{"text": "a completion", "finish_reason": "stop"}]},
    {"type": "message", "content": [], "stop_reason": "end_turn"},
    {"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}]},
    {"output": [], "status": "incomplete", "error": None},
    {"message": {"content": [{"text": "hi"}]}, "finish_reason": "COMPLETE"},
]


@pytest.mark.parametrize("body", ANSWERS)
def test_an_answer_is_no_fault(body: Any) -> None:
    assert fault_of(body) is None


FAULTS: list[tuple[Any, type[Exception], str]] = [
    (None, lm15.ProviderError, "null"),
    ("upstream connect error", lm15.ServerError, "upstream"),
    ([GOOD], lm15.ProviderError, "choices"),
    ([{"error": {"code": 503, "message": "no"}}], lm15.ServerError, "no"),
    ({"status": "ok"}, lm15.ProviderError, "is none"),
    ({**GOOD, "choices": None}, lm15.ProviderError, "is none"),
    ({**GOOD, "choices": {"0": choice()}}, lm15.ProviderError, "is none"),
    ({**GOOD, "choices": ["hi"]}, lm15.ProviderError, "is none"),
    ({**GOOD, "choices": [{"finish_reason": "stop"}]}, lm15.ProviderError, "is none"),
    ({**GOOD, "choices": []}, lm15.ProviderError, "no choice"),
    ({**GOOD, "choices": [], "prompt_filter_results": FILTERED}, lm15.InvalidRequestError, "filter"),
    ({**GOOD, "choices": [{"finish_reason": "content_filter"}]}, lm15.InvalidRequestError, "filter"),
    ({**GOOD, "choices": [{**choice("error"), "error": {"code": 502, "message": "died"}}]}, lm15.ServerError, "died"),
    ({**GOOD, "choices": [choice("error")]}, lm15.ProviderError, "'error'"),
    ({**GOOD, "error": {"code": 429, "message": "slow"}}, lm15.RateLimitError, "slow"),
    ({"object": "error", "message": "slow", "code": 429}, lm15.RateLimitError, "slow"),
    (
        {"success": False, "errors": [{"code": 7009, "message": "Upstream service unavailable"}]},
        lm15.ServerError,
        "7009|Up",
    ),
    ({"detail": "Rate limit exceeded"}, lm15.RateLimitError, "Rate"),
    ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": None}, lm15.RateLimitError, "rate"),
]


@pytest.mark.parametrize(("body", "kind", "text"), FAULTS)
def test_what_is_no_answer_says_why(body: Any, kind: type[Exception], text: str) -> None:
    fault = fault_of(body, field="choices")
    assert type(fault) is kind
    with pytest.raises(kind, match=text):
        raise fault


@pytest.mark.parametrize("field", ["choices", "candidates", "content", "output"])
def test_every_finish_reason_of_the_table_is_good_in_any_spelling_and_any_other_is_not(field: str) -> None:
    def ended(reason: str) -> dict[str, Any]:
        name = {"choices": "finish_reason", "candidates": "finishReason"}.get(field, "stop_reason")
        part = {"message": {"content": "hi"}, name: reason}
        return {field: [part]} if field in ("choices", "candidates") else {field: [], name: reason}

    for reasons in FINISH_REASONS.values():
        for reason in reasons:
            for spelt in (reason, reason.upper(), reason.replace("_", ""), reason.replace("_", "-")):
                assert fault_of(ended(spelt)) is None, spelt
    for reason in ("error", "ERROR", "abort", "insufficient_system_resource", "network_error", "other", "MALFORMED"):
        assert type(fault_of(ended(reason))) is lm15.ProviderError, reason


NO_TEXTS: list[Any] = [5, 1.5, True, {"a": 1}, ["hi"], [None], [{"type": "text", "text": 5}], [{"text": {"a": "b"}}]]


@pytest.mark.parametrize("content", NO_TEXTS, ids=str)
def test_a_content_that_is_no_text_is_no_answer(content: Any) -> None:
    bodies: list[dict[str, Any]] = [
        {"choices": [choice(content=content)]},
        {"choices": [choice(content="hi"), choice(content=content)]},
        {"content": content, "stop_reason": "end_turn"},
        {"output": [{"type": "message", "content": content}]},
        {"candidates": [{"content": {"parts": content}, "finishReason": "STOP"}]},
    ]
    for body in bodies:
        assert type(fault_of(body)) is lm15.ProviderError, body
    assert type(fault_of({"choices": [{"delta": {"content": content}}]}, event=True)) is lm15.ProviderError


@pytest.mark.parametrize("content", [None, "", "hi", [], [{"type": "text", "text": "hi"}], [{"type": "thinking"}]])
def test_a_content_of_parts_is_a_text(content: Any) -> None:
    assert fault_of({"choices": [choice(content=content)]}) is None
    assert fault_of({"choices": [{"delta": {"content": content}}]}, event=True) is None


@pytest.mark.parametrize("reason", [1, 0, True, False, ["stop"], {"type": "error"}], ids=str)
@pytest.mark.parametrize("name", ["finish_reason", "finishReason", "stop_reason"])
def test_a_finish_reason_that_is_no_text_is_a_failure(name: str, reason: Any) -> None:
    part = {"message": {"content": "hi"}, name: reason}
    for body in ({"choices": [part]}, {"candidates": [part]}, {"content": [], name: reason}):
        assert type(fault_of(body, event=True)) is lm15.ProviderError
        assert not is_last(json.dumps(body))


def test_a_stop_token_beside_a_finish_reason_is_no_reason() -> None:
    assert fault_of({"choices": [{**choice("stop"), "stop_reason": 128009}]}) is None


EVENTS: list[tuple[Any, type[Exception] | None]] = [
    ({"choices": [], "usage": {"prompt_tokens": 1}}, None),
    ({"choices": [], "prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": False}}}]}, None),
    ({"choices": [], "prompt_filter_results": FILTERED}, lm15.InvalidRequestError),
    ({"type": "ping"}, None),
    ({"type": "message_start", "message": {"content": []}}, None),
    ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, None),
    ({"type": "message_delta", "delta": {"stop_reason": "boom"}}, lm15.ProviderError),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, lm15.ServerError),
    ({"type": "response.failed", "response": {"error": {"code": "server_error"}}}, lm15.ServerError),
    ({"type": "response.output_text.delta", "delta": "hi"}, None),
    ({"choices": [{"delta": {"content": "hi"}, "finish_reason": None}]}, None),
    ({"choices": [{"delta": {}, "finish_reason": "error"}]}, lm15.ProviderError),
    ({"error": {"code": 429, "message": "slow"}}, lm15.RateLimitError),
    ({"object": "error", "message": "maximum context length is 4 tokens", "code": 400}, lm15.ContextLengthError),
    ({"code": "Throttling", "message": "slow"}, lm15.RateLimitError),
    (None, None),
]


@pytest.mark.parametrize(("event", "kind"), EVENTS)
def test_an_event_of_a_stream_need_have_no_answer(event: Any, kind: type[Exception] | None) -> None:
    fault = fault_of(event, event=True)
    assert (None if fault is None else type(fault)) is kind


LAST: list[tuple[Any, bool]] = [
    ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, True),
    ({"choices": [{"delta": {}, "finish_reason": "MAX-TOKENS"}]}, True),
    ({"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}]}, True),
    ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, True),
    ({"type": "message_stop"}, True),
    ({"type": "response.completed", "response": {}}, True),
    ({"type": "response.incomplete", "response": {}}, True),
    ({"choices": [{"delta": {"content": "hi"}, "finish_reason": None}]}, False),
    ({"choices": [{"delta": {"content": "hi"}, "finish_reason": ""}]}, False),
    ({"choices": [{"delta": {"content": "hi"}, "finish_reason": "null"}]}, False),
    ({"choices": [{"delta": {"content": "hi"}, "finish_reason": "NULL"}]}, False),
    ({"candidates": [{"content": {"parts": []}, "finishReason": "FINISH_REASON_UNSPECIFIED"}]}, False),
    ({"candidates": [{"content": {"parts": [{"functionCall": {"args": {"finish_reason": "stop"}}}]}}]}, False),
    ({"type": "content_block_start", "content_block": {"input": {"stop_reason": "end_turn"}}}, False),
    ({"type": "response.output_text.delta", "delta": '"finish_reason": "stop"'}, False),
    ({"choices": [{"delta": {"content": '{"finish_reason": "stop", "type": "message_stop"}'}}]}, False),
    ({"choices": [{"delta": {"content": "message_stop"}}]}, False),
    (["finish_reason"], False),
]


@pytest.mark.parametrize(("event", "last"), LAST)
def test_only_a_reason_that_says_the_end_makes_an_event_the_last(event: Any, last: bool) -> None:
    assert is_last(json.dumps(event)) is last


@pytest.mark.parametrize(("data", "last"), [("[DONE]", True), ("", False), ('{"finish_reason": "stop"', False)])
def test_data_that_is_no_json_ends_an_answer_only_by_name(data: str, last: bool) -> None:
    assert is_last(data) is last


def test_a_count_is_left_out_wherever_it_stands() -> None:
    assert without_usage(GOOD) == {name: value for name, value in GOOD.items() if name != "usage"}
    assert without_usage({"type": "x", "response": {"usage": 1, "id": "y"}}) == {"type": "x", "response": {"id": "y"}}
    assert without_usage({"usageMetadata": "n/a"}) == {}
    assert (without_usage({"id": "x"}), without_usage([1])) == (None, None)
