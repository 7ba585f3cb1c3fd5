import numpy as np
import pytest

from priml.config.data import PromptFormat
from priml.data.chat import render_prompt, untokenized_prompt
from priml.errors import ConfigError, RunError
from priml.models.tiny import character_tokenizer
from priml.rollout.base import SamplingSpec, is_lost
from priml.rollout.endpoint import Endpoint
from priml.rollout.openai import OpenAISampler
from priml.types import Problem
from servers.stand_in import StandIn, hashed, question

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}be good{% endif %}{% for message in messages %}"
    "{{ message['role'] }}:{{ message['content'] }};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
PROBLEMS = [Problem(id=name, prompt=f"{name}?", answer="1") for name in "abc"]
SPEC = SamplingSpec(group_size=3, temperature=0.5, max_new_tokens=9, seed=0, step=-1, top_p=0.9)


@pytest.fixture
def tokenizer():
    found = character_tokenizer()
    found.chat_template = TEMPLATE
    return found


def sampler(server, tokenizer=None, form=PromptFormat(), *, retries=0, concurrency=4):  # noqa: B008 (frozen)
    endpoint = Endpoint(server.url, "tiny", timeout=60, retries=retries)
    return OpenAISampler(endpoint, tokenizer, form, concurrency=concurrency)


def bare(form=PromptFormat()):  # noqa: B008 (frozen)
    return [untokenized_prompt(problem, form) for problem in PROBLEMS]


def test_each_response_is_asked_for_by_itself_with_a_seed_of_its_own():
    seen = []
    with StandIn(answer=lambda body: f"{question(body)} {body['seed']}") as server:
        groups = sampler(server).sample(bare(), SPEC, lambda prompt, trajectory: seen.append((prompt, trajectory)))
        again = sampler(server).sample(bare()[1:2], SPEC, None, [range(2, 3)])
    assert [group.prompt.problem.id for group in groups] == ["a", "b", "c"]
    assert [[t.sample for t in group.trajectories] for group in groups] == [[0, 1, 2]] * 3
    assert {(p.problem.id, t) for p, t in seen} == {(g.prompt.problem.id, t) for g in groups for t in g.trajectories}
    texts = [t.text for group in groups for t in group.trajectories]
    assert len(set(texts)) == 9
    assert again[0].trajectories[0].text == groups[1].trajectories[2].text
    body = server.requests[0]
    assert (body["max_tokens"], body["temperature"], body["top_p"], "n" in body) == (9, 0.5, 0.9, False)


def test_a_greedy_response_has_neither_seed_nor_top_p():
    with StandIn() as server:
        sampler(server).sample(bare(), SamplingSpec(1, 0.0, 9, 0, -1))
    assert {tuple(sorted(body)) for body in server.requests} == {("max_tokens", "messages", "model", "temperature")}


def test_log_probs_and_without_a_tokenizer_tokens_are_not_known(tokenizer):
    with StandIn(answer=lambda _: "123") as server:
        (group,) = sampler(server, tokenizer).sample(bare()[:1], SPEC)
        (other,) = sampler(server).sample(bare()[:1], SPEC)
    first = group.trajectories[0]
    assert tokenizer.decode(first.token_ids, skip_special_tokens=True) == "123"
    assert np.isnan(first.logprobs).all()
    assert other.trajectories[0].num_trained == 0


def test_the_server_applies_its_template_unless_the_prompt_is_plain(tokenizer):
    form = PromptFormat(system="S", suffix="!", template_kwargs={"messages_only": True})
    with StandIn() as server:
        sampler(server, None, form).sample(bare(form)[:1], SPEC)
        plain = PromptFormat(template="plain", suffix="!")
        prompt = render_prompt(PROBLEMS[0], tokenizer, plain)
        sampler(server, tokenizer, plain).sample([prompt], SPEC)
    chat, text = server.requests[0], server.requests[-1]
    assert chat["messages"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "a?!"}]
    assert chat["chat_template_kwargs"] == {"messages_only": True}
    bos = tokenizer.decode([tokenizer.bos_token_id], skip_special_tokens=False) if tokenizer.bos_token_id else ""
    assert text["prompt"] == prompt.text.removeprefix(bos) == "a?!"


def test_a_lost_request_costs_its_own_response_alone_and_is_undecided():
    def fault(_, body):
        return "error" if question(body) == "b?" else None

    with StandIn(fault=fault) as server:
        groups = sampler(server).sample(bare(), SPEC)
    verdicts = [[trajectory.verdict for trajectory in group.trajectories] for group in groups]
    assert verdicts[0] == verdicts[2] == [None] * 3
    assert {verdict.reason for verdict in verdicts[1]} == {"request lost: status 500"}
    assert all(map(is_lost, verdicts[1]))


def test_a_server_that_is_gone_ends_the_run_and_a_refusal_does_so_at_once():
    prompts = bare() * 40
    with (
        StandIn(fault=lambda *_: "drop") as server,
        pytest.raises(RunError, match=r"the last 8 requests to tiny at .* lost \(connection\).*priml eval RUN_DIR"),
    ):
        sampler(server).sample(prompts, SPEC)
    assert len(server.requests) < 20
    with StandIn(fault=lambda *_: 400) as server, pytest.raises(RunError, match="refuses a request: status 400"):
        sampler(server).sample(prompts, SPEC)
    assert len(server.requests) < 20


def test_what_finished_raises_ends_the_sampling():
    def finished(*_):
        raise KeyboardInterrupt

    with StandIn() as server:
        with pytest.raises(KeyboardInterrupt):
            sampler(server).sample(bare() * 100, SPEC, finished)
        assert len(server.requests) < 100


def counted(tokenizer, *, change=lambda text: text, more=0):
    """How a server counts that renders the conversation, with something wrong in it."""

    def count(body):
        text = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        return len(tokenizer.encode(change(text), add_special_tokens=False)) + more

    return count


def test_a_server_that_reads_other_tokens_is_refused(tokenizer):
    form = PromptFormat()
    prompt = render_prompt(PROBLEMS[0], tokenizer, form)
    with StandIn(count=counted(tokenizer)) as server:
        sampler(server, tokenizer).check(prompt)
        assert len(server.requests) == 1
        assert server.requests[0]["max_tokens"] == 1
    needed = len(prompt.token_ids)
    with (
        StandIn(count=counted(tokenizer, more=1)) as server,
        pytest.raises(ConfigError, match=rf"reads {needed + 1} tokens .*need the {needed} .*one more.*BOS"),
    ):
        sampler(server, tokenizer).check(prompt)
    with (
        StandIn(count=counted(tokenizer, change=lambda text: text + text)) as server,
        pytest.raises(ConfigError, match=rf"reads {2 * needed} tokens .*apply it twice, or its own system message"),
    ):
        sampler(server, tokenizer).check(prompt)
    with StandIn(count=lambda _: 3) as server:
        sampler(server).check(bare()[0])  # without a tokenizer there is nothing to compare


def test_the_stand_in_answers_by_question_and_seed():
    body = {"messages": [{"role": "user", "content": "a"}], "temperature": 1, "seed": 1}
    assert hashed(body) == hashed(dict(body))
    assert len({hashed({**body, "seed": seed}) for seed in range(40)}) > 3
