"""Against a real vLLM: events fill the index, predictions are exact, what the engine loses the index loses.

The tests share one engine and run in the order in which they stand here.
"""

import concurrent.futures
import time

import pytest
from engine import PAGE
from harness import until
from traffic import Client, Conversation, Tally, rng, sentence

CONVERSATIONS = 56
TURNS = 3
SMALL = 48  # pages of the engine that must evict


@pytest.fixture
def client(stage):
    return Client(stage)


def systems():
    """System prompts that conversations share, and none."""
    r = rng(1)
    return [sentence(r, 20), sentence(r, 90), sentence(r, 260), None]


def test_events_fill_the_index(stage, client):
    assert stage.fleet.index_blocks() == (0, 0)
    r = rng(2)
    for words in (10, 100, 300):
        client.exact(Conversation(r, None).ask(client, words))
    held = len(stage.mirror.held())
    assert held > 10
    print(f"\nengine ready after {stage.engine.ready_after:.0f} s; {held} pages by events, as many in both indexes")


def test_predictions_of_conversations_are_exact(stage, client):
    r = rng(3)
    shared = systems()
    open_ = [Conversation(r, shared[i % len(shared)]) for i in range(CONVERSATIONS)]
    tally = Tally()
    for turn in range(TURNS):
        for number, conversation in enumerate(open_):
            answer = conversation.ask(client, r.randrange(3, 90), stream=number % 3 == 0, max_tokens=r.choice([1, 8, 40]))
            tally.add(client.exact(answer), f"conversation {number}, turn {turn}")
    tally.report(f"{CONVERSATIONS} conversations of {TURNS} turns")
    reused = [a for a, what in tally.rows if a.cached]
    assert len(reused) > CONVERSATIONS, "hardly anything was reused: the check says nothing"


def test_every_prompt_length_around_a_page_is_exact(stage, client):
    # The engine always computes the last token again, and with it that token's page.
    ids = stage.tokenizer(sentence(rng(4), 400))["input_ids"]
    tally = Tally()
    for length in [*range(2 * PAGE - 2, 2 * PAGE + 3), *range(4 * PAGE - 1, 4 * PAGE + 2), 5 * PAGE]:
        for again in range(2):
            tally.add(client.exact(client.complete(ids[:length], max_tokens=1)), f"{length} ids, time {again}")
    tally.report("prompts of token ids around a page's end")


def test_plain_prompts_are_exact(stage, client):
    r = rng(5)
    text = sentence(r, 120)
    tally = Tally()
    for _ in range(4):
        tally.add(client.exact(client.complete(text)), "text")
        text += sentence(r, 30)
    tally.report("/v1/completions with text that grows")


def test_salts_keep_apart(stage, client):
    tally = Tally()
    for salt in ("pepper", "thyme", None, "pepper"):
        answer = Conversation(rng(6), systems()[2], salt).ask(client, 20)
        tally.add(client.exact(answer, salt), f"salt {salt}")
    tally.report("one prompt under two salts and none")
    assert [a.cached > 0 for a, _ in tally.rows[:2]] == [False, False]
    assert tally.rows[3][0].cached > 0


def test_many_at_once(stage, client):
    # Predictions of requests that run into each other may be off; afterwards nothing may be.
    r = rng(7)
    shared = systems()
    open_ = [Conversation(rng(100 + i), shared[i % 3]) for i in range(12)]
    answers = []
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        for _ in range(3):
            answers += pool.map(lambda c: c.ask(client, 10 + c.rng.randrange(60)), open_)
    for answer in answers:
        answer.predicted = stage.fleet.prediction()
    until(lambda: all(stage.mirror.has(a.computed) for a in answers), 20, what="the engine's events")
    stage.fleet.wait_index(lambda: len(stage.mirror.held()))
    copies = sum(stage.mirror.copies.values())
    held = len(stage.mirror.held())
    predicted = sum(a.predicted["predicted_tokens"] for a in answers)
    cached = sum(a.predicted["cached_tokens"] for a in answers)
    print(f"\n12 at once: predicted {predicted} cached tokens, reported {cached}; {held} pages in {copies} copies")
    tally = Tally()
    for number, conversation in enumerate(open_):
        tally.add(client.exact(conversation.ask(client, 5)), f"conversation {number} afterwards")
    tally.report("after 12 at once")


def test_an_agent_that_comes_late_knows_everything(stage, client):
    stage.fleet.agent.kill()
    stage.fleet.wait_ready(0)
    # What the engine now computes nobody of ours sees.
    past = Client(stage, stage.engine.url)
    before = len(stage.mirror.held())
    conversation = Conversation(rng(20), sentence(rng(20), 150))
    past.told(conversation.ask(past, 40))
    held = len(stage.mirror.held())
    assert held > before
    began = time.monotonic()
    stage.fleet.start_agent()
    stage.fleet.wait_ready()
    stage.fleet.wait_index(held)
    print(f"\nagent started again: {held} pages known after {time.monotonic() - began:.1f} s, by the engine's replay")
    tally = Tally()
    tally.add(client.exact(conversation.ask(client, 20)), "prompt from before the agent")
    # And what others send to the engine while an agent is there.
    past.settle(conversation.ask(past, 40))
    tally.add(client.exact(conversation.ask(client, 20)), "prompt that went past the gateway")
    tally.report("prompts that the gateway has not seen")
    assert all(answer.cached > 0 for answer, _ in tally.rows)


def test_a_scheduler_that_restarts_knows_everything(stage, client):
    held = len(stage.mirror.held())
    stage.fleet.scheduler.kill()
    began = time.monotonic()
    stage.fleet.start_scheduler()
    stage.fleet.wait_ready()
    stage.fleet.wait_index(held)
    print(f"\nscheduler started again: {held} pages known after {time.monotonic() - began:.1f} s, by the agent's dump")
    tally = Tally()
    tally.add(client.exact(Conversation(rng(6), systems()[2]).ask(client, 20)), "old prompt, new scheduler")
    tally.report("after the scheduler's restart")


def test_a_reset_of_the_cache_is_followed(stage, client):
    before = len(stage.mirror.held())
    status, answer = stage.engine.call("POST", "/reset_prefix_cache")
    assert (status, answer) == (200, {"success": True})
    # The engine tells of it with its next step.
    answer = Conversation(rng(8), None).ask(client, 40)
    stage.fleet.prediction()
    client.settle(answer)
    assert stage.mirror.cleared == 1
    after = len(stage.mirror.held())
    assert after < before
    print(f"\nreset of the cache: {before} pages before, {after} after it and one prompt")


def test_a_killed_engine_is_gone_and_comes_back_empty(stage, client):
    client.exact(Conversation(rng(9), systems()[2]).ask(client, 20))
    held = len(stage.mirror.held())
    began = time.monotonic()
    stage.engine.kill()
    stage.fleet.wait_ready(0)
    gone = time.monotonic() - began
    stage.restart_engine(SMALL, max_len=1024)
    # What it held before counts until it is known to have begun anew.
    stage.fleet.wait_ready()
    stage.fleet.wait_index(0)
    tally = Tally()
    for turn in range(2):
        tally.add(client.exact(Conversation(rng(9), systems()[2]).ask(client, 20)), f"time {turn}")
    tally.report(f"engine killed (out of the fleet after {gone:.1f} s) and started again ({held} pages forgotten)")
    assert [a.cached > 0 for a, _ in tally.rows] == [False, True]


def test_eviction_empties_the_index(stage, client):
    r = rng(10)
    first = Conversation(r, sentence(r, 120))
    opening = client.exact(first.ask(client, 20))
    again = first.messages[:1]
    assert stage.mirror.cached(opening.prompt) > 0
    shared = systems()[:2]
    tally = Tally()
    open_ = []
    for number in range(60):
        if open_ and r.random() < 0.5:
            conversation = r.choice(open_[-4:])
        else:
            conversation = Conversation(r, r.choice(shared))
            open_.append(conversation)
        if sum(len(m["content"]) for m in conversation.messages) > 2000:
            continue
        answer = conversation.ask(client, r.randrange(5, 60), max_tokens=r.choice([2, 40]))
        tally.add(client.exact(answer), f"request {number}")
    removed = stage.mirror.removed
    held = len(stage.mirror.held())
    print(f"\na cache of {SMALL} pages: {stage.mirror.stored} stored, {removed} evicted, {held} held and in the index")
    assert removed > 2 * SMALL
    assert held < SMALL
    tally.report("while the engine evicts")
    # What was first is gone from both.
    conversation = Conversation(r, again[0]["content"])
    answer = client.exact(conversation.ask(client, 3))
    assert answer.predicted["predicted_tokens"] == answer.cached == answer.mirrored == 0
