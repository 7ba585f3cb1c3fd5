import sys

import pytest

from priml.errors import ConfigError
from priml.rollout.endpoint import Endpoint, RequestLost, RequestRefused
from servers.stand_in import FAULTS, StandIn

CHAT = {"messages": [{"role": "user", "content": "2+2?"}], "max_tokens": 9, "temperature": 0}


def endpoint(server, *, model="tiny", retries=2, timeout=60.0):
    return Endpoint(server.url, model, timeout=timeout, retries=retries)


def first(fault):
    """Only the first request goes wrong."""
    return lambda number, _: fault if number == 0 else None


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "hang"] + [503, 408])
def test_what_fails_once_is_asked_again(fault):
    with StandIn(answer=lambda _: "four", fault=first(fault)) as server:
        assert endpoint(server).ask(CHAT).text == "four"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("limit", "status 429"),
        ("error", "status 500"),
        ("drop", "connection"),
        ("half", "connection"),
        ("cut", "no answer in the reply"),
        ("null", "no answer in the reply"),
        ("aborted", "no answer in the reply"),
        ("empty", "empty reply"),
    ],
)
def test_what_fails_every_time_is_lost_and_no_empty_response(fault, reason):
    with StandIn(fault=lambda *_: fault, count=lambda _: 3) as server:
        with pytest.raises(RequestLost, match=f"^{reason}$"):
            endpoint(server, retries=1).ask(CHAT)
        assert len(server.requests) == 2


def test_a_server_that_hangs_is_not_waited_for():
    with StandIn(fault=first("hang"), answer=lambda _: "four") as server:
        assert endpoint(server, timeout=1.0).ask(CHAT).text == "four"
        with pytest.raises(RequestLost, match="time-out"), StandIn(fault=lambda *_: "hang") as dead:
            endpoint(dead, timeout=0.2, retries=0).ask(CHAT)


def test_the_pause_that_the_server_asks_for_is_kept():
    with StandIn(fault=first("limit"), retry_after=2) as server:
        endpoint(server).ask(CHAT)
        assert server.times[1] - server.times[0] >= 2


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_request_that_is_refused_is_not_repeated(status):
    with StandIn(fault=lambda *_: status) as server:
        with pytest.raises(RequestRefused, match=f"status {status}: .*as the test wants it"):
            endpoint(server).ask(CHAT)
        assert len(server.requests) == 1


def chat(**message):
    return lambda _: {"index": 0, "finish_reason": message.pop("ends", "stop"), "message": message}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "4", "reasoning_content": "two and two"}, "<think>two and two</think>4"),
        ({"content": "4", "reasoning": "two and two"}, "<think>two and two</think>4"),
        ({"content": None, "reasoning_content": "two and", "ends": "length"}, "<think>two and"),
        ({"content": "4", "reasoning_content": None}, "4"),
        ({"content": "a\ud800b"}, "a?b"),
        ({"content": "nul \x00 and </s>"}, "nul \x00 and </s>"),
    ],
)
def test_the_text_is_whole_and_has_a_utf8_form(message, text):
    with StandIn(answer=chat(**message), count=lambda _: 3) as server:
        found = endpoint(server).ask(CHAT)
    assert found.text == text
    assert found.is_cut == (text == "<think>two and")
    assert found.prompt_tokens == 3


def test_an_empty_response_of_one_token_is_a_response():
    with StandIn(answer=lambda _: "", count=lambda _: 3) as server:
        assert endpoint(server).ask(CHAT).text == ""


@pytest.mark.parametrize("content", [3, ["a"], {"text": "a"}])
def test_content_that_is_no_text_is_no_answer(content):
    with StandIn(answer=chat(content=content)) as server, pytest.raises(RequestLost):
        endpoint(server, retries=0).ask(CHAT)


def test_a_response_that_the_provider_filters_is_lost():
    with StandIn(answer=chat(content="", ends="content_filter")) as server:
        with pytest.raises(RequestLost, match="content filter"):
            endpoint(server).ask(CHAT)
        assert len(server.requests) == 1


def test_what_is_wrong_with_a_server_is_said_before_it_is_used():
    with StandIn(models=["tiny-math", "other"], context=64) as server:
        with pytest.raises(ConfigError, match=r"found 'tiny', need one .*: other, tiny-math; did you mean 'tiny-m"):
            endpoint(server).check_model(10)
        with pytest.raises(ConfigError, match=r"takes 64 tokens, and a prompt with its response may have 65"):
            endpoint(server, model="other").check_model(65)
        endpoint(server, model="other").check_model(64)
    with pytest.raises(ConfigError, match=rf"found no server at {server.url} \(.+\), need one"):
        endpoint(server).check_model(10)


def test_a_server_that_lists_no_models_is_asked_all_the_same():
    with StandIn(models=None) as server:
        endpoint(server).check_model(10)


def test_a_model_that_calls_the_limit_otherwise_gets_its_name():
    message = "Use 'max_completion_tokens' instead."
    with StandIn(fault=lambda _, body: message if "max_tokens" in body else None, answer=lambda _: "f") as server:
        found = endpoint(server)
        found.probe(CHAT)
        assert found.ask(CHAT).text == "f"
        assert [body.get("max_completion_tokens") for body in server.requests] == [None, 1, 9]


def test_the_key_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with StandIn() as server:
        endpoint(server).ask(CHAT)
        assert server.headers[0]["authorization"] == "Bearer secret-key"


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'priml\[api\]'"):
        Endpoint("http://127.0.0.1:1/v1", "m", timeout=1, retries=0)
