"""Sampling from a server: one request per response, many at a time.

Never `n` responses in one request: some servers answer with one without a word, and a response that is lost would take
the others along.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from priml.config.data import PromptFormat
from priml.data.chat import prompt_messages, uses_template
from priml.errors import ConfigError, RunError
from priml.rollout.base import LOST, Finished, SamplingSpec
from priml.rollout.endpoint import Answer, Endpoint, RequestLost, RequestRefused
from priml.rollout.trajectories import SampleNumbers, build_groups, draw_key
from priml.types import Group, Prompt, Segment, Tokenizer, Trajectory, Verdict


class OpenAISampler:
    """Responses of a model that a server has. Its weights, and the log-probs, stay there."""

    def __init__(
        self, endpoint: Endpoint, tokenizer: Tokenizer | None, form: PromptFormat, *, concurrency: int
    ) -> None:
        """`tokenizer`: that of the model; without one responses have no tokens. `form`: how prompts were rendered."""
        self._endpoint = endpoint
        self._tokenizer = tokenizer
        self._form = form
        self._concurrency = concurrency
        self._numbers = SampleNumbers()

    def check(self, prompt: Prompt) -> None:
        """Check with one request that the server reads the tokens that we count, if it tells how many it reads.

        Raises:
            ConfigError: it reads others.
        """
        answer = self._endpoint.probe(self._asked(prompt))
        found, needed = answer and answer.prompt_tokens, len(prompt.token_ids)
        if found is not None and needed and found != needed:
            raise ConfigError(
                f"sampler: {self._endpoint} reads {found} tokens in the prompt of problem {prompt.problem.id!r}, need "
                f"the {needed} that its chat template and tokenizer make of it. {self._guess(prompt, found)}"
            )

    def sample(
        self,
        prompts: Sequence[Prompt],
        spec: SamplingSpec,
        finished: Finished | None = None,
        numbers: Sequence[range] | None = None,
    ) -> list[Group]:
        """As in `Sampler`. A response whose request was lost is empty, with an undecided verdict (`is_lost`).

        Raises:
            RunError: the server refuses a request, or seems to be gone.
        """
        numbers = self._numbers.take(prompts, spec) if numbers is None else numbers
        # The longest first: a context that is too short is then known at once.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].text))
        tasks = [_Task(i, prompts[i], sample) for i in order for sample in numbers[i]]
        trajectories: list[list[Trajectory]] = [[] for _ in prompts]
        for task, trajectory in self._finished(tasks, spec):
            trajectories[task.index].append(trajectory)
            if finished is not None:
                finished(task.prompt, trajectory)
        return build_groups(prompts, trajectories)

    def _finished(self, tasks: Sequence[_Task], spec: SamplingSpec) -> Iterator[tuple[_Task, Trajectory]]:
        """The responses as they come."""
        waiting: SimpleQueue[_Task] = SimpleQueue()
        replies: SimpleQueue[tuple[_Task, Answer | Exception]] = SimpleQueue()
        for task in tasks:
            waiting.put(task)
        for _ in range(min(self._concurrency, len(tasks))):
            # Daemons: a server that hangs does not keep the process alive.
            threading.Thread(target=self._work, args=(waiting, replies, spec), name="ask", daemon=True).start()
        lost = 0
        try:
            for _ in tasks:
                task, reply = replies.get()
                lost = lost + 1 if isinstance(reply, RequestLost) else 0
                self._check_going(reply, lost)
                yield task, self._trajectory(task, reply)
        finally:
            _drain(waiting)

    def _work(
        self, waiting: SimpleQueue[_Task], replies: SimpleQueue[tuple[_Task, Answer | Exception]], spec: SamplingSpec
    ) -> None:
        while True:
            try:
                task = waiting.get_nowait()
            except Empty:
                return
            try:
                replies.put((task, self._endpoint.ask(self._asked(task.prompt) | _drawn(task, spec))))
            except Exception as error:  # the thread that waits for it raises it
                replies.put((task, error))

    def _check_going(self, reply: Answer | Exception, lost: int) -> None:
        if isinstance(reply, RequestRefused):
            raise RunError(
                f"sampler: {self._endpoint} refuses a request: {reply}; mend that, and go on with priml eval RUN_DIR: "
                "nothing that is finished is asked again"
            )
        if isinstance(reply, Exception) and not isinstance(reply, RequestLost):
            raise reply
        if lost >= 2 * self._concurrency:
            raise RunError(
                f"sampler: the last {lost} requests to {self._endpoint} were lost ({reply}), so it seems to be gone; "
                "start it, and go on with priml eval RUN_DIR: nothing that is finished is asked again"
            )

    def _trajectory(self, task: _Task, reply: Answer | Exception) -> Trajectory:
        if not isinstance(reply, Answer):
            verdict = Verdict.undecided(f"{LOST}: {reply}")
            return Trajectory((_segment([]),), "", "stop", task.sample, verdict=verdict)
        ids = self._tokenizer.encode(reply.text, add_special_tokens=False) if self._tokenizer else []
        return Trajectory((_segment(ids),), reply.text, "length" if reply.is_cut else "stop", task.sample)

    def _asked(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt as a conversation for the server's chat template, or as text."""
        form, tokenizer = self._form, self._tokenizer
        if form.template == "plain" or not (tokenizer is None or uses_template(tokenizer, form)):
            return {"prompt": self._plain_text(prompt)}
        messages = [{"role": m.role, "content": m.content} for m in prompt_messages(prompt.problem, form)]
        return {"messages": messages} | ({"chat_template_kwargs": form.template_kwargs} if form.template_kwargs else {})

    def _plain_text(self, prompt: Prompt) -> str:
        """Without BOS, which the server puts there itself."""
        tokenizer, bos = self._tokenizer, prompt.token_ids[:1]
        if tokenizer is None or bos != (tokenizer.bos_token_id,):
            return prompt.text
        return prompt.text.removeprefix(tokenizer.decode(bos, skip_special_tokens=False))

    def _guess(self, prompt: Prompt, found: int) -> str:
        """What may be the reason for another number of tokens."""
        if found == len(prompt.token_ids) + 1:
            return "It is one more: the server may put BOS before a template that writes one itself."
        has_system = any(message.role == "system" for message in prompt_messages(prompt.problem, self._form))
        more = "" if has_system else " or its own system message (give one under prompt.system, if only an empty one);"
        return f"It may apply another chat template, or apply it twice,{more} or have another model than `model` says."


@dataclass(frozen=True, slots=True)
class _Task:
    index: int
    prompt: Prompt
    sample: int


def _drawn(task: _Task, spec: SamplingSpec) -> dict[str, Any]:
    """How the response is drawn. Each has its own seed, for servers that take one."""
    body: dict[str, Any] = {"max_tokens": spec.max_new_tokens, "temperature": spec.temperature}
    if spec.temperature:
        body["seed"] = response_seed(spec, task.prompt.problem.id, task.sample)
    if spec.temperature and spec.top_p < 1:
        body["top_p"] = spec.top_p
    return body


def response_seed(spec: SamplingSpec, problem_id: str, sample: int) -> int:
    """The seed of a response: 31 bits, because some servers keep it in 32 with a sign."""
    return int.from_bytes(draw_key(spec, problem_id, sample)[:4], "little") >> 1


def _segment(ids: Sequence[int]) -> Segment:
    return Segment(np.array(ids, np.int32), np.full(len(ids), np.nan, np.float32), 0)


def _drain(waiting: SimpleQueue[_Task]) -> None:
    while True:
        try:
            waiting.get_nowait()
        except Empty:
            return
