"""What a server's refusal means, in the words of many servers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.policies.http._refusals import ErrorText, error_text, status_in

FULL = {
    "OpenAI": (
        "This model's maximum context length is 4096 tokens. However, your messages resulted in "
        "5000 tokens. Please reduce the length of the messages."
    ),
    "OpenAI, Responses": (
        "Your input exceeds the context window of this model. Please adjust your input and try "
        "again."
    ),
    "OpenAI, a part": (
        "Invalid 'messages[1].content': string too long. Expected a string with maximum length "
        "1048576, but got a string with length 1700000 instead."
    ),
    "GPT-5": (
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in "
        "509178 tokens."
    ),
    "Azure": "Request body too large for phi-4 model. Max size: 8000 tokens.",
    "vLLM": (
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
        "(4500 in the messages, 500 in the completion)."
    ),
    "vLLM, later": (
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make "
        "sure that `max_model_len` is no smaller than the number of text tokens."
    ),
    "vLLM, the limit": (
        "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's maximum context "
        "length is 4096 tokens and your request has 3900 input tokens."
    ),
    "SGLang": (
        "Requested token count exceeds the model's maximum context length of 8192 tokens. You "
        "requested a total of 9000 tokens."
    ),
    "SGLang, the prompt": (
        "The input (9000 tokens) is longer than the model's context length (8192 tokens)."
    ),
    "llama.cpp": (
        "request (6031 tokens) exceeds the available context size (2048 tokens), try increasing it"
    ),
    "llama.cpp, older": (
        "the request exceeds the available context size. try increasing the context size or enable "
        "context shift"
    ),
    "llama-cpp-python": "Requested tokens (5000) exceed context window of 4096",
    "Ollama": "prompt too long; exceeded max context length by 904 tokens",
    "LM Studio": (
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is "
        "loaded with context length of only 4096 tokens."
    ),
    "LM Studio, later": "tokens to keep from initial prompt is greater than the context length",
    "TGI": (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1800 "
        "`inputs` tokens and 512 `max_new_tokens`"
    ),
    "TGI, the prompt": (
        "Input validation error: `inputs` must have less than 1024 tokens. Given: 1800"
    ),
    "TensorRT-LLM": (
        "The sum of prompt length (4000), query length (0) and max_tokens (512) should not exceed "
        "max_seq_len (4096)"
    ),
    "TensorRT-LLM, the prompt": (
        "Prompt length (5000) exceeds maximum input length (4096). Set log level to info and check "
        "TRTGptModel logs"
    ),
    "transformers": (
        "Input length of input_ids is 5000, but `max_length` is set to 4096. This can lead to "
        "unexpected behavior."
    ),
    "transformers, the tokenizer": (
        "Token indices sequence length is longer than the specified maximum sequence length for "
        "this model (5000 > 4096)"
    ),
    "Anthropic": "prompt is too long: 210000 tokens > 200000 maximum",
    "Anthropic, the sum": (
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000, decrease "
        "input length or `max_tokens` and try again"
    ),
    "Bedrock": "Input is too long for requested model.",
    "Bedrock, Nova": (
        "The model returned the following errors: Input Tokens Exceeded: Number of input tokens "
        "exceeds maximum length."
    ),
    "Bedrock, Llama": (
        "This model's maximum context length is 8192 tokens. Please reduce the length of the prompt"
    ),
    "Gemini": "The input token count (5000) exceeds the maximum number of tokens allowed (4096).",
    "Gemini, Vertex": "The input token count exceeds the maximum number of tokens allowed 1048576.",
    "xAI": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Mistral": (
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum "
        "context length"
    ),
    "Cohere": (
        "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000. "
        "Try using a shorter prompt"
    ),
    "Groq": "Please reduce the length of the messages or completion.",
    "Cerebras": (
        "Please reduce the length of the messages or completion. Current length is 9000 while "
        "limit is 8192"
    ),
    "Together": (
        "The input (5000 tokens) and the maximum output exceed the model's limit of 4096 tokens"
    ),
    "Fireworks": "The prompt is too long: 5000, model maximum context length: 4096",
    "Copilot": "prompt token count of 5000 exceeds the limit of 4096",
    "Moonshot": "Invalid request: Your request exceeded model token limit: 8192",
    "MiniMax": "invalid params, context window exceeds limit (2013)",
    "DashScope": (
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]"
    ),
    "Cloudflare": (
        "The estimated number of input and maximum output tokens (5000) exceeded this model "
        "context window limit (4096)."
    ),
    "OpenRouter": (
        "This endpoint's maximum context length is 4096 tokens. However, you requested about 5000 "
        "tokens (4500 of text input, 500 in the output)."
    ),
    "Databricks": "BAD_REQUEST: prompt token count (5000) cannot exceed 4096",
    "AI21": "Prompt has 5000 tokens which is more than the maximum allowed of 4096",
    "exllama": "Prompt length 5000 is greater than max_seq_len 4096",
    "LMDeploy": "input length error: the input length [5000] exceeds session_len 4096",
    "Zhipu": "输入长度超过模型最大上下文长度",
}

OTHER = [
    "Unknown message role: none in turn 3",
    "temperature: Input should be less than or equal to 1",
    "'temperature' does not support 1.5 with this model. Only the default (1) value is supported.",
    (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead."
    ),
    "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
    "Expected a value >= 16, but got 1 instead.",
    (
        "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29000, Requested "
        "5000."
    ),
    (
        "Request too large for model `llama-3.1-8b` on tokens per minute (TPM): Limit 6000, "
        "Requested 9000, please reduce your message size and try again."
    ),
    "You exceeded your current quota, please check your plan and billing details.",
    "Your request exceeded the maximum number of concurrent requests",
    (
        "Invalid 'user': string too long. Expected a string with maximum length 64, but got a "
        "string with length 100 instead."
    ),
    "The model `gpt-9` does not exist or you do not have access to it.",
    "Incorrect API key provided: sk-abc***xyz",
    "Field 'n': Value must be between 1 <= value <= 2, but got 4",
    "json_schema is not supported by this model",
    (
        "[{'type': 'missing', 'loc': ['body', 'messages'], 'msg': 'Field required', 'input': "
        "{'model': 'm'}}]"
    ),
    "image exceeds 5 MB maximum",
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "",
]


@pytest.mark.parametrize("who", FULL)
def test_a_full_context_is_known_in_the_words_of_every_server(who: str) -> None:
    for shape in (
        {"error": {"message": FULL[who]}},
        {"object": "error", "message": FULL[who]},
        {"detail": FULL[who]},
        FULL[who],
    ):
        assert error_text(shape).context_full


@pytest.mark.parametrize("said", OTHER)
def test_other_refusals_are_not_taken_for_a_full_context(said: str) -> None:
    assert not error_text(
        {"error": {"message": said, "type": "invalid_request_error", "code": 400}}
    ).context_full


@pytest.mark.parametrize(
    "code",
    [
        "context_length_exceeded",
        "exceed_context_size_error",
        "tokens_limit_reached",
        "model_context_window_exceeded",
        "request_too_large",
    ],
)
def test_a_code_says_it_where_the_sentence_does_not(code: str) -> None:
    for error in (
        {"message": "Bad request", "code": code},
        {"message": "Bad request", "type": code},
    ):
        assert error_text({"error": error}).context_full


def test_a_repeated_prompt_is_not_read() -> None:
    body = {
        "detail": [{"msg": "Field required", "loc": ["body", "model"]}],
        "body": {"messages": ["the context length is exceeded"]},
    }
    assert not error_text(
        {"error": {"message": "bad request", "param": "context_length", "echo": body}}
    ).context_full


def test_refusals_are_read_for_the_field_that_they_name() -> None:
    assert ErrorText("Field 'n': Value must be between 1 <= value <= 2, but got 4").names_n
    assert ErrorText("response_format is not supported by this model").names_schema
    assert ErrorText("Unexpected fields in the request: {'seed'}").names("seed")
    assert ErrorText("`temperature` and `top_p` cannot both be specified for this model").names(
        "top_p"
    )
    assert ErrorText("Unsupported parameter: 'stop' is not supported with this model.").names(
        "stop"
    )
    renamed = ErrorText(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead."
    )
    assert renamed.renames_limit and renamed.names_limit  # noqa: PT018
    both = ErrorText(
        "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's maximum context "
        "length is 4096 tokens"
    )
    assert both.names_limit
    assert not both.renames_limit
    other = ErrorText("Unknown message role: none in turn 3")
    assert [
        other.names_n,
        other.names_schema,
        other.names_limit,
        other.renames_limit,
        *map(other.names, ("seed", "temperature", "top_p", "stop")),
    ] == [False] * 8


@pytest.mark.parametrize(
    "said",
    [
        (
            "max_tokens is too large: 6000. This model supports at most 4096 completion tokens, "
            "whereas you provided 6000."
        ),
        (
            "max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens for "
            "claude"
        ),
        "`max_tokens` must be less than or equal to `8192`",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
        "Range of max_tokens should be [1, 8192]",
        "The maximum tokens you requested exceeds the model limit of 4096.",
        (
            "Unable to submit request because it has a maxOutputTokens value of 100000 but the "
            "supported range is from 1 (inclusive) to 65537 (exclusive)."
        ),
        (
            "The parameter `max_completion_tokens` specified in the request are not valid: integer "
            "above maximum value, expected a value <= 12288, but got 32000 instead."
        ),
        "`max_new_tokens` must be <= 512. Given: 1024",
    ],
)
def test_a_limit_that_is_too_high_is_known(said: str) -> None:
    assert ErrorText(said).names_limit
    assert not ErrorText(said).renames_limit


def test_a_refusal_is_one_short_line_wherever_the_server_puts_it() -> None:
    assert error_text({"error": {"message": "No\n such   model."}}).text == "No such model"
    assert error_text({"detail": "x"}).text == "x"
    assert error_text({"object": "error", "message": "y"}).text == "y"
    assert error_text([{"error": {"message": "z"}}]).text == "z"
    assert error_text({"detail": [{"loc": ["body"], "msg": "z"}]}).text.startswith("[{'loc'")
    assert len(error_text("a" * 1000).text) == 300
    assert error_text("\x1b[2Jgone\x07").text == "[2Jgone"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"error": {"code": 429}}, 429),
        ({"error": {"code": "503"}}, 503),
        ({"error": {"status": 400, "message": "x"}}, 400),
        ({"error": {"code": "context_length_exceeded"}}, None),
        ({"error": {"code": 200}}, None),
        ({"error": "x"}, None),
        ({"choices": [], "error": {"code": 500}}, None),
        ([], None),
        ({"error": {"code": True}}, None),
        ({"error": {"code": "9" * 5000}}, None),
    ],
)
def test_the_status_of_an_error_that_comes_as_an_answer(answer: Any, status: int | None) -> None:
    assert status_in(answer) == status


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "msg", "code", "type"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_the_body_is_it_says_one_line(answer: Any) -> None:
    words = error_text(answer)
    assert "\n" not in words.text
    assert words.text.isprintable()
    assert len(words.text) <= 300
    assert isinstance(words.context_full, bool)
    status_in(answer)


def test_a_body_nested_without_end() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = {"error": deep}
    error_text(deep)
    flat: Any = []
    for _ in range(100_000):
        flat = [flat]
    error_text({"error": flat})
