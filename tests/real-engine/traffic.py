"""Requests through the gateway, with everything that is known about each of them."""

import dataclasses
import json
import random
import urllib.request

from engine import NAME, PAGE, call
from harness import until

NOUNS = "router engine cache prefix block token gateway agent scheduler prompt answer turn queue stream page".split()


def sentence(rng, words):
    """Prose-like text with numbers, capitals, punctuation and some that is not ASCII."""
    out = []
    for i in range(words):
        word = rng.choice(NOUNS)
        kind = rng.randrange(12)
        if kind == 0:
            word = str(rng.randrange(100000))
        elif kind == 1:
            word = rng.choice(["Größe", "café", "東京", "привет", "naïve", "😀", "don't", "e\u0301t\u00e9"])
        elif kind == 2:
            word = word.capitalize() + rng.choice([".", ",", "?\n", ":\n\n"])
        out.append(word)
    return " ".join(out)


@dataclasses.dataclass
class Answer:
    text: str
    prompt: list  # token ids
    tokens: list  # token ids
    prompt_tokens: int
    cached: int
    mirrored: int  # what the engine's events before the request said
    predicted: dict | None = None

    @property
    def computed(self):
        """Tokens whose keys and values the engine has computed; of the last one generated it has not."""
        return self.prompt + self.tokens[:-1]


class Client:
    """Sends through the gateway, or past it to the engine."""

    def __init__(self, stage, url=None):
        self.stage = stage
        self.url = url or stage.fleet.gateway.url

    def chat(self, messages, salt=None, stream=False, **more):
        body = {
            "model": NAME, "messages": messages, "max_tokens": 8, "temperature": 0.8, "seed": 3,
            "return_token_ids": True, **more,
        }  # fmt: skip
        if salt:
            body["cache_salt"] = salt
        prompt = self.stage.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        mirrored = self.stage.mirror.cached(prompt, salt)
        answer = self._stream(body) if stream else self._whole("/v1/chat/completions", body)
        assert answer.prompt == prompt, "the engine's prompt differs from the reference's"
        answer.mirrored = mirrored
        return answer

    def complete(self, prompt, **more):
        body = {"model": NAME, "prompt": prompt, "max_tokens": 8, "temperature": 0, "return_token_ids": True, **more}
        ids = prompt if isinstance(prompt, list) else self.stage.tokenizer(prompt)["input_ids"]
        mirrored = self.stage.mirror.cached(ids)
        answer = self._whole("/v1/completions", body)
        assert answer.prompt == ids
        answer.mirrored = mirrored
        return answer

    def _whole(self, path, body):
        status, got = call(self.url, "POST", path, body)
        assert status == 200, (status, got)
        choice = got["choices"][0]
        prompt = got.get("prompt_token_ids") or choice.get("prompt_token_ids")
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return self._answer(text, prompt, choice["token_ids"], got["usage"])

    def _stream(self, body):
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        request = urllib.request.Request(
            self.url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        text, prompt, tokens, usage = "", None, [], None
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                prompt = chunk.get("prompt_token_ids") or prompt
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
                    tokens += choice.get("token_ids") or []
        return self._answer(text, prompt, tokens, usage)

    @staticmethod
    def _answer(text, prompt, tokens, usage):
        details = usage.get("prompt_tokens_details") or {}
        return Answer(text or "", prompt, tokens, usage["prompt_tokens"], details.get("cached_tokens"), -1)

    def told(self, answer, salt=None):
        """Until the events of this answer's pages are out."""
        until(lambda: self.stage.mirror.has(answer.computed, salt), 20, every=0.005, what="the engine's events")

    def settle(self, answer, salt=None):
        """Until both indexes agree with the engine, too."""
        self.told(answer, salt)
        self.stage.fleet.wait_index(lambda: len(self.stage.mirror.held()))

    def exact(self, answer, salt=None):
        """Adds the gateway's prediction and waits until all is quiet."""
        answer.predicted = self.stage.fleet.prediction()
        self.settle(answer, salt)
        return answer


class Tally:
    """Counts predictions that are right, and remembers the others."""

    def __init__(self):
        self.rows = []

    def add(self, answer, what):
        self.rows.append((answer, what))

    def right(self):
        return [a for a, _ in self.rows if a.predicted["predicted_tokens"] == a.cached == a.mirrored]

    def wrong(self):
        return [
            f"{what}: prompt {a.prompt_tokens} tokens, gateway predicted {a.predicted}, "
            f"events said {a.mirrored}, engine reported {a.cached}"
            for a, what in self.rows
            if not a.predicted["predicted_tokens"] == a.cached == a.mirrored
        ]

    def report(self, name):
        cached = sum(a.cached for a, _ in self.rows)
        prompt = sum(a.prompt_tokens for a, _ in self.rows)
        print(
            f"\n{name}: {len(self.right())} of {len(self.rows)} predictions equal what the engine reports; "
            f"{cached} of {prompt} prompt tokens cached"
        )
        wrong = self.wrong()
        assert not wrong, f"{len(wrong)} wrong predictions\n" + "\n".join(wrong[:10])


class Conversation:
    def __init__(self, rng, system, salt=None):
        self.rng = rng
        self.salt = salt
        self.messages = [{"role": "system", "content": system}] if system else []

    def ask(self, client, words, stream=False, **more):
        self.messages.append({"role": "user", "content": sentence(self.rng, words)})
        answer = client.chat(self.messages, self.salt, stream, **more)
        self.messages.append({"role": "assistant", "content": answer.text})
        return answer


def rng(seed):
    return random.Random(seed)


__all__ = ["Answer", "Client", "Conversation", "PAGE", "Tally", "rng", "sentence"]
