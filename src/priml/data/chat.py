"""From problems to prompts: chat templates and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from priml.config.data import PromptFormat
from priml.errors import DataError, ModelError
from priml.types import Message, Problem, Prompt, Tokenizer

PROBLEM = "{problem}"
"""Stands for the question in a text around it."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of a data set that fit, in its order, and the ids of the problems that did not."""

    prompts: tuple[Prompt, ...]
    too_long: tuple[str, ...]


def render_prompt(problem: Problem, tokenizer: Tokenizer, form: PromptFormat) -> Prompt:
    """The prompt of a problem, up to the point where the response begins.

    `form.text` goes around the last message, `form.suffix` right behind that. `form.system` is used where the problem
    has no system message. A plain prompt is all messages with a blank line between them, behind the BOS token if the
    tokenizer begins texts with it.

    The text is what the token ids stand for, special tokens included (so it must not get another BOS).
    Raises `ModelError` if the template is missing or refuses the messages.
    """
    messages = _messages(problem, form)
    if not uses_template(tokenizer, form) and form.template != "chat":
        return _plain_prompt(problem, messages, tokenizer)
    if not tokenizer.chat_template:
        raise ModelError("template: chat was asked for, but the tokenizer has no chat template; use auto or plain")
    text = _apply_template(problem, messages, tokenizer)
    # The template writes BOS itself where the model wants one.
    return Prompt(problem, text, tuple(tokenizer.encode(text, add_special_tokens=False)))


def uses_template(tokenizer: Tokenizer, form: PromptFormat) -> bool:
    """Whether conversations are rendered by the chat template."""
    return form.template != "plain" and bool(tokenizer.chat_template)


def build_prompts(problems: Sequence[Problem], tokenizer: Tokenizer, form: PromptFormat) -> PromptSet:
    """Render all problems and leave out those of more than `form.max_prompt_tokens` tokens.

    Prompts are never cut: a cut question is another question. Raises `DataError` if none is left.
    """
    longest = form.max_prompt_tokens
    rendered = [render_prompt(problem, tokenizer, form) for problem in problems]
    fitting = tuple(prompt for prompt in rendered if len(prompt.token_ids) <= longest)
    if not rendered:
        raise DataError("there are no problems to render; name a data source that has some")
    if not fitting:
        shortest = min(len(prompt.token_ids) for prompt in rendered)
        raise DataError(
            f"all {len(rendered)} prompts are longer than max_prompt_tokens={longest}: the shortest has "
            f"{shortest} tokens; raise max_prompt_tokens, or shorten the system prompt and the suffix"
        )
    too_long = tuple(prompt.problem.id for prompt in rendered if len(prompt.token_ids) > longest)
    return PromptSet(fitting, too_long)


def require_eos(tokenizer: Tokenizer) -> int:
    """The id of the EOS token. Raises `ModelError` if there is none: no response could ever end."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no EOS token, so no response could end; set `eos_token` in the model folder's "
            "tokenizer_config.json to the token the model ends with"
        )
    return tokenizer.eos_token_id


def response_tokens(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens of a given response, EOS at the end, as the policy would have sampled them.

    The text is tokenized without its prompt, because sampling begins there. Raises `ModelError` without EOS.
    """
    eos = require_eos(tokenizer)
    token_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    return token_ids if token_ids[-1:] == (eos,) else (*token_ids, eos)


def _messages(problem: Problem, form: PromptFormat) -> tuple[Message, ...]:
    given = (Message("user", problem.prompt),) if isinstance(problem.prompt, str) else problem.prompt
    # Not str.format: mathematics is full of braces.
    content = (form.text or PROBLEM).replace(PROBLEM, given[-1].content) + (form.suffix or "")
    ends = (*given[:-1], replace(given[-1], content=content))
    if form.system is None or any(message.role == "system" for message in given):
        return ends
    return (Message("system", form.system), *ends)


def _apply_template(problem: Problem, messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    # Only templates need jinja2, which comes with torch rather than by our own wish.
    from jinja2 import TemplateError

    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ModelError(
            f"the chat template refused problem {problem.id!r} (roles: {roles}): {error}; "
            "if it takes no system message, move that text into the suffix, or use template: plain"
        ) from error


def _plain_prompt(problem: Problem, messages: Sequence[Message], tokenizer: Tokenizer) -> Prompt:
    text = "\n\n".join(message.content for message in messages if message.content)
    bare = tokenizer.encode(text, add_special_tokens=False)
    # Asked of the tokenizer rather than read from a setting, whose name differs between families. Only BOS is copied:
    # some tokenizers also append EOS, behind which no model would answer.
    first = tokenizer.encode(text, add_special_tokens=True)[:1]
    if first == bare[:1] or first != [tokenizer.bos_token_id]:
        return Prompt(problem, text, tuple(bare))
    return Prompt(problem, tokenizer.decode(first, skip_special_tokens=False) + text, (*first, *bare))
