"""A server with the interface of OpenAI: vLLM, SGLang, llama.cpp, transformers, a provider.

The `openai` package repeats what failed on the way (429 with Retry-After, 5xx, time-outs, lost connections). Here is
what it takes for an answer and is none.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from priml.errors import ConfigError

_PASSING = (408, 409, 429)
"""Statuses that pass with time, beside those of 500 and more."""
_SHOWN = 20
_CONTEXTS = ("max_model_len", "context_length", "context_window", "max_context_length")
"""What servers call the longest sequence in their list of models: vLLM and SGLang, OpenRouter, Groq, Mistral."""

Body = Mapping[str, Any]


class RequestLost(Exception):
    """A request that got no answer after all its repetitions. Its text is short and fit for counting."""


class RequestRefused(Exception):
    """The server does not take this request, however often it is sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One response of a server."""

    text: str
    """With its thoughts, between tags, if the server tells them apart."""
    is_cut: bool
    """It ended at the limit of tokens."""
    prompt_tokens: int | None
    """As the server counts them; None: it does not say."""


class Endpoint:
    """One model behind one address. Safe for many threads. The key is that of `OPENAI_API_KEY`."""

    def __init__(self, base_url: str, model: str, *, timeout: float, retries: int) -> None:
        """`timeout`: seconds of one request; `retries`: further attempts.

        Raises:
            ConfigError: the `openai` package is not installed.
        """
        self._address, self._model, self._retries = base_url, model, retries
        self._limit_name = "max_tokens"
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ConfigError(
                f"sampler.kind: openai needs the openai package (found: {error}); pip install 'priml[api]', or choose "
                "kind: transformers"
            ) from None
        # A server of one's own asks for no key, and the client refuses to begin without one.
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=retries)

    def __str__(self) -> str:
        return f"{self._model} at {self._address}"

    def check_model(self, longest: int) -> None:
        """Check that the server is there and has the model, with room for `longest` tokens. It may tell neither.

        Raises:
            ConfigError: it is not so.
        """
        import openai

        try:
            listed = self._client.with_options(max_retries=1).get("/models", cast_to=object)
        except openai.APIConnectionError as error:
            raise ConfigError(
                f"sampler.base_url: found no server at {self._address} ({_cause(error)}), need one with the interface "
                "of OpenAI; start it, or correct the address (most end in /v1)"
            ) from None
        except openai.AuthenticationError:
            raise ConfigError(
                f"sampler.base_url: {self._address} refuses the key; set the environment variable OPENAI_API_KEY"
            ) from None
        except (openai.APIStatusError, ValueError):
            return  # some list no models, and fail on the question
        models = _models(listed)
        if models and self._model not in models:
            near = difflib.get_close_matches(self._model, models, n=1, cutoff=0.4)
            names = ", ".join(sorted(models)[:_SHOWN]) + (", ..." if len(models) > _SHOWN else "")
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"sampler.model: found {self._model!r}, need one that the server has: {names}{hint}")
        room = next((room for key in _CONTEXTS if isinstance(room := models.get(self._model, {}).get(key), int)), None)
        if room is not None and longest > room:
            raise ConfigError(
                f"sampler.model: {self} takes {room} tokens, and a prompt with its response may have {longest}; serve "
                "it with more, or lower max_new_tokens"
            )

    def probe(self, request: Body) -> Answer | None:
        """Send one request for a single token; None: the server answers none.

        Raises:
            ConfigError: the server refuses it, or gives no answer.
        """
        body = {**request, "max_tokens": 1, "temperature": 0}
        try:
            try:
                return self.ask(body)
            except RequestRefused as error:
                if "max_completion_tokens" not in str(error):
                    raise
                self._limit_name = "max_completion_tokens"  # newer models of OpenAI take no other name
                return self.ask(body)
        except (RequestRefused, RequestLost) as error:
            raise ConfigError(f"sampler: {self} does not answer a first request: {error}") from None

    def ask(self, request: Body) -> Answer:
        """Ask for one response. `messages` are for the server's chat template, `prompt` is sent as it stands.

        Raises:
            RequestLost: all attempts failed, or gave what is no answer.
            RequestRefused: the server does not take it.
        """
        body = {**request, "model": self._model}
        body[self._limit_name] = body.pop("max_tokens")
        for left in reversed(range(self._retries + 1)):
            found = self._post(body)
            try:
                return _read(found, asked_chat="messages" in body)
            except _NoAnswer as error:
                if not left:
                    raise RequestLost(str(error)) from None
        raise AssertionError("unreachable: there is at least one attempt")

    def _post(self, body: Body) -> object:
        import openai

        path = "/chat/completions" if "messages" in body else "/completions"
        try:
            # Not `chat.completions.create`: for every request its checks of types take longer than the rest.
            return self._client.post(path, body=body, cast_to=object)
        except openai.APITimeoutError:
            raise RequestLost("time-out") from None
        except openai.APIConnectionError:
            raise RequestLost("connection") from None
        except openai.APIStatusError as error:
            if error.status_code >= 500 or error.status_code in _PASSING:
                raise RequestLost(f"status {error.status_code}") from None
            if "content_filter" in (error.code or ""):
                raise RequestLost("content filter") from None
            raise RequestRefused(f"status {error.status_code}: {' '.join(error.message.split())[:300]}") from None
        except ValueError:  # no JSON, or half of it
            return None


class _NoAnswer(Exception):
    pass


def _models(listed: object) -> dict[str, Mapping[str, Any]]:
    data = cast(Mapping[str, Any], listed).get("data") if isinstance(listed, Mapping) else None
    rows = cast(Sequence[object], data) if isinstance(data, Sequence) else ()
    found = [cast(Mapping[str, Any], row) for row in rows if isinstance(row, Mapping)]
    return {str(row["id"]): row for row in found if "id" in row}


_ENDS = {"stop": False, "eos_token": False, "stop_sequence": False, "tool_calls": False, "length": True}
"""Why a response ended: whether it was cut. Anything else is a failure, such as `abort`."""


def _read(found: object, *, asked_chat: bool) -> Answer:
    """Read the answer of a server, which may be anything."""
    try:
        choice, usage = found["choices"][0], found.get("usage") or {}  # pyright: ignore
        reason = choice["finish_reason"]
        spoken = choice["message"] if asked_chat else {"content": choice["text"]}
        thought = spoken.get("reasoning_content") or spoken.get("reasoning") or ""
        text = spoken.get("content") or ""
        counted, generated = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise _NoAnswer("no answer in the reply") from None
    if reason == "content_filter":
        raise RequestLost("content filter")
    if reason not in _ENDS or not isinstance(text, str) or not isinstance(thought, str):
        raise _NoAnswer("no answer in the reply")
    if not text and not thought and not generated:
        raise _NoAnswer("empty reply")  # an error in the clothes of a response: even EOS is a token
    if thought:
        text = f"<think>{thought}</think>{text}" if text else f"<think>{thought}"
    # Half of a surrogate pair has no UTF-8 form, and a reply can hold one.
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return Answer(text, _ENDS[reason], counted if isinstance(counted, int) else None)


def _cause(error: Exception) -> str:
    inner = error.__cause__ or error
    return " ".join(str(inner).split())[:120] or type(inner).__name__
