"""The real `openai` client against the real gateway."""

import json

import openai
import pytest

from harness import get_json, reservations, until


@pytest.fixture(scope="module")
def client(up):
    return openai.OpenAI(base_url=up.url + "/v1", api_key="unused", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def test_models(client, model):
    assert client.models.retrieve(model).id == model


def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens > 0


def test_chat_stream_with_usage(client, model):
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Count, please"}],
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage, finish = "", None, None
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    assert text and finish == "length"
    assert usage.completion_tokens == 12


def test_second_turn_is_served_from_cache(client, model):
    messages = [
        {"role": "system", "content": "You are a careful assistant. " * 60},
        {"role": "user", "content": "First question of this conversation."},
    ]
    first = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And a second one."},
    ]
    second = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached > 0.7 * first.usage.prompt_tokens


def test_completions_embeddings_responses(client, model):
    completion = client.completions.create(model=model, prompt="Once upon", max_tokens=5)
    assert completion.choices[0].text
    embedding = client.embeddings.create(model=model, input=["one", "two"])
    assert len(embedding.data) == 2 and len(embedding.data[0].embedding) > 0
    response = client.responses.create(model=model, input="Say something", max_output_tokens=6)
    assert response.output_text
    kinds = [event.type for event in client.responses.create(model=model, input="Again", max_output_tokens=6, stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"


def test_unknown_model_names_those_that_exist(client, model):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])
    assert error.value.code == "model_not_found"
    assert model in str(error.value) and "no-such-model" in str(error.value)


def test_wrong_types_name_the_place(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}, 7])
    assert "messages[1]" in str(error.value)


def test_cancelled_stream_reaches_the_engine(up, client, model):
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Long story"}], max_tokens=4000, stream=True
    )
    for _ in zip(range(3), stream):
        pass
    engines = up.field("engines").split(",")
    busy = lambda: sum(get_json(f"http://{e}/sim/state")["in_flight"] for e in engines)
    assert busy() == 1
    stream.close()
    until(lambda: busy() == 0, 2, 0.01, "the engine's request was cancelled")
    until(lambda: reservations(up.field("admin")) == 0, 2, what="no reservation is left")


def test_extra_headers_choose_how_a_request_is_routed(client, model):
    ask = lambda **headers: client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=4, extra_headers=headers
    )
    turns = [ask(**{"routing-strategy": "round-robin"}).headers["x-fairlead-instance"] for _ in range(8)]
    assert turns[:4] == turns[4:] and len(set(turns)) == 4
    answer = ask(**{"routing-strategy": "least-request", "x-fairlead-explain": "1", "x-llm-d-slo-ttft-ms": "500"})
    said = json.loads(answer.headers["x-fairlead-explain"])
    assert said["policy"] == "least-request" and said["chosen"] == answer.headers["x-fairlead-instance"]
    assert answer.parse().choices[0].message.content
    with pytest.raises(openai.BadRequestError) as error:
        ask(**{"routing-strategy": "nope"})
    assert error.value.code == "invalid_routing_strategy" and "least-request" in str(error.value)
