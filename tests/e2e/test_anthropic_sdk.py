"""The real `anthropic` client against the real gateway."""

import anthropic
import pytest

from harness import get_json


@pytest.fixture(scope="module")
def client(up):
    return anthropic.Anthropic(base_url=up.url, api_key="unused", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def model(up):
    return get_json(up.url + "/v1/models")["data"][0]["id"]


def test_message(client, model):
    answer = client.messages.create(model=model, max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
    assert answer.content[0].text and answer.usage.output_tokens == 9


def test_stream(client, model):
    with client.messages.stream(
        model=model, max_tokens=9, system="Be brief.", messages=[{"role": "user", "content": "Hello"}]
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text
    assert final.usage.output_tokens == 9 and final.stop_reason == "max_tokens"


def test_count_tokens(client, model):
    counted = client.messages.count_tokens(model=model, messages=[{"role": "user", "content": "Hello there"}])
    assert counted.input_tokens > 0


def test_unknown_model_in_their_error_shape(client):
    with pytest.raises(anthropic.NotFoundError) as error:
        client.messages.create(model="nobody", max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
    assert error.value.body["type"] == "error"
    assert error.value.body["error"]["type"] == "not_found_error"
