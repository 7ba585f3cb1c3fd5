"""From problems to prompts: chat templates and tokens."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from priml.config.data import PromptFormat
from priml.errors import DataError, ModelError
from priml.types import Message, Problem, Prompt, Tokenizer

PROBLEM = "{problem}"
"""Stands for the question in a text around it."""
_ADVICE = "if it takes no system message, move that text into the suffix; or use template: plain, or mend the template"


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
    Raises `ModelError` if the template is missing, refuses the messages or leaves some out.
    """
    messages = prompt_messages(problem, form)
    if not uses_template(tokenizer, form) and form.template != "chat":
        return _plain_prompt(problem, messages, tokenizer)
    if not tokenizer.chat_template:
        raise ModelError("template: chat was asked for, but the tokenizer has no chat template; use auto or plain")
    try:
        text = apply_template(messages, tokenizer, form)
    except ModelError as error:
        raise ModelError(f"problem {problem.id!r}: {error}; {_ADVICE}") from error
    # The template writes BOS itself where the model wants one.
    return Prompt(problem, text, tuple(tokenizer.encode(text, add_special_tokens=False)))


def untokenized_prompt(problem: Problem, form: PromptFormat) -> Prompt:
    """A prompt for a server, which knows the tokens: its text is that of a plain one."""
    text = "\n\n".join(message.content for message in prompt_messages(problem, form) if message.content)
    return Prompt(problem, text, ())


def prompt_messages(problem: Problem, form: PromptFormat) -> tuple[Message, ...]:
    """The messages of a prompt: the problem's own, with what `form` puts around them."""
    given = (Message("user", problem.prompt),) if isinstance(problem.prompt, str) else problem.prompt
    # Not str.format: mathematics is full of braces.
    content = (form.text or PROBLEM).replace(PROBLEM, given[-1].content) + (form.suffix or "")
    ends = (*given[:-1], replace(given[-1], content=content))
    if form.system is None or any(message.role == "system" for message in given):
        return ends
    return (Message("system", form.system), *ends)


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


def special_tokens_in(problems: Sequence[Problem], tokenizer: Tokenizer) -> list[tuple[Problem, str]]:
    """The problems whose own text holds a special token, each with the first one. A model reads it as that token."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not special:
        return []
    pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
    found: list[tuple[Problem, str]] = []
    for problem in problems:
        texts = [problem.prompt] if isinstance(problem.prompt, str) else [turn.content for turn in problem.prompt]
        if first := next(filter(None, map(pattern.search, texts)), None):
            found.append((problem, first[0]))
    return found


def require_eos(tokenizer: Tokenizer) -> int:
    """The id of the EOS token. Raises `ModelError` if there is none: no response could ever end."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no EOS token, so no response could end; set `eos_token` in the model folder's "
            "tokenizer_config.json to the token the model ends with"
        )
    return tokenizer.eos_token_id


def response_end(tokenizer: Tokenizer, form: PromptFormat) -> int:
    """The token that ends a response: what the chat template writes behind an assistant's message, where that is a
    token of its own kind (`<end_of_turn>`, `<|im_end|>`); else EOS. Raises `ModelError` without EOS.
    """
    eos = require_eos(tokenizer)
    if not uses_template(tokenizer, form):
        return eos
    turn = "PrimlTurnHere"
    try:
        text = apply_template((Message("user", "?"), Message("assistant", turn)), tokenizer, form, asks=False)
    except ModelError:  # a template for prompts alone
        return eos
    behind = tokenizer.encode(text.rpartition(turn)[2].lstrip(), add_special_tokens=False)[:1]
    return behind[0] if behind and behind[0] in tokenizer.get_added_vocab().values() else eos


def response_tokens(text: str, tokenizer: Tokenizer, end: int) -> tuple[int, ...]:
    """The tokens of a given response, once `end` at its end, as the policy would have sampled them.

    The text is tokenized without its prompt, because sampling begins there.
    """
    for closing in {end, tokenizer.eos_token_id}:
        written = tokenizer.decode([closing], skip_special_tokens=False)
        text = text.rstrip().removesuffix(written) if text.rstrip().endswith(written) else text
    return (*tokenizer.encode(text, add_special_tokens=False), end)


def apply_template(messages: Sequence[Message], tokenizer: Tokenizer, form: PromptFormat, *, asks: bool = True) -> str:
    """Messages as the tokenizer's chat template renders them; `asks`: up to where the next response begins.

    A template that leaves out what a message says, given as text, gets it as a list of parts: those of models that also
    see read nothing else. A template that writes the date writes `form.date`.

    Raises:
        ModelError: the template fails, leaves out a message, or does not read an argument of `form.template_kwargs`.
    """
    template = _dated(_template(tokenizer), form.date)
    _check_arguments(template, form)
    try:
        return _rendered(messages, tokenizer, template, form, asks=asks, as_parts=False)
    except ModelError:
        with suppress(ModelError):
            return _rendered(messages, tokenizer, template, form, asks=asks, as_parts=True)
        raise


def _rendered(
    messages: Sequence[Message], tokenizer: Tokenizer, template: str, form: PromptFormat, *, asks: bool, as_parts: bool
) -> str:
    contents = [[{"type": "text", "text": m.content}] if as_parts else m.content for m in messages]
    conversation = [{"role": m.role, "content": content} for m, content in zip(messages, contents, strict=True)]
    arguments = form.template_kwargs or {}
    try:
        text = tokenizer.apply_chat_template(
            conversation, chat_template=template, tokenize=False, add_generation_prompt=asks, **arguments
        )
    except Exception as error:  # a template is a program, which came with the model
        raise ModelError(_failure(error, messages)) from error
    _check_complete(messages, text)
    return text


def _check_arguments(template: str, form: PromptFormat) -> None:
    for name in form.template_kwargs or {}:
        if name in ("messages", "add_generation_prompt") or not re.search(rf"\b{re.escape(name)}\b", template):
            raise ModelError(
                f"prompt.template_kwargs: found {name}, need names that the chat template reads; remove it"
            )


def _template(tokenizer: Tokenizer) -> str:
    """The one that is used where the tokenizer has several, by name."""
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        names = ", ".join(sorted(tokenizer.chat_template)) if isinstance(tokenizer.chat_template, dict) else "none"
        raise ModelError(
            f"the tokenizer has the chat templates {names}, need one named default; rename the one to use in the model "
            "folder, or set template: plain"
        ) from error


def _dated(template: str, date: datetime.date | None) -> str:
    """The template with its clock standing at the start of a day."""
    if date is None or "strftime_now" not in template:
        return template
    # transformers takes plain values only, no function that would stand for its own. A macro may, and replaces the
    # directives one after the other.
    midnight = datetime.datetime.combine(date, datetime.time())
    names = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdDeFHIjmMpSTuUVwWxXyYZ"]
    names.append("%%")
    steps = "".join(f"|replace({name!r}, {midnight.strftime(name)!r})" for name in names)
    return "{%- macro strftime_now(format) -%}{{ format" + steps + " }}{%- endmacro +%}" + template


def _check_complete(messages: Sequence[Message], text: str) -> None:
    """Everything that the model is told stands in the text, but for white space. What an assistant said may be cut:
    templates leave out the reasoning of earlier turns."""
    rendered = "".join(text.split())
    for message in messages:
        if message.role != "assistant" and "".join(message.content.split()) not in rendered:
            raise ModelError(f"the chat template leaves out the text of the {message.role} message")


def _failure(error: Exception, messages: Sequence[Message]) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        return f"the tokenizer's chat template has a syntax error in line {error.lineno}: {error.message}"
    roles = ", ".join(message.role for message in messages)
    if isinstance(error, TemplateError):
        return f"the chat template refused a conversation of the roles {roles}: {error}"
    return (
        f"the chat template failed on a conversation of the roles {roles}: {type(error).__name__}: {error}; give what "
        "it reads, such as template_kwargs: {tools: []}"
    )


def _plain_prompt(problem: Problem, messages: Sequence[Message], tokenizer: Tokenizer) -> Prompt:
    text = "\n\n".join(message.content for message in messages if message.content)
    bare = tokenizer.encode(text, add_special_tokens=False)
    # Asked of the tokenizer rather than read from a setting, whose name differs between families. Only BOS is copied:
    # some tokenizers also append EOS, behind which no model would answer.
    first = tokenizer.encode(text, add_special_tokens=True)[:1]
    if first == bare[:1] or first != [tokenizer.bos_token_id]:
        return Prompt(problem, text, tuple(bare))
    return Prompt(problem, tokenizer.decode(first, skip_special_tokens=False) + text, (*first, *bare))
