"""From sampled tokens to groups of completions: the same for every engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from priml.rollout.base import Finished
from priml.types import Completion, Group, Prompt, Tokenizer


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One finished response, as an engine returns it."""

    prompt: int
    """Index of its prompt."""
    sample: int
    token_ids: NDArray[np.int32]
    """With the end-of-sequence token, if there is one."""
    logprobs: NDArray[np.float32]
    """One for each token."""


class CompletionBuilder:
    """Turns the tokens of one model into completions."""

    def __init__(self, module: Any, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = eos_ids(module, tokenizer)

    def groups(
        self, prompts: Sequence[Prompt], sampled: Iterable[SampledTokens], version: int, finished: Finished | None
    ) -> list[Group]:
        """One group for each prompt, in the order of the prompts, with the samples in their order.

        `finished` is called as each response arrives.
        """
        completions: list[list[Completion]] = [[] for _ in prompts]
        for tokens in sampled:
            completion = self._completion(tokens, version)
            completions[tokens.prompt].append(completion)
            if finished is not None:
                finished(prompts[tokens.prompt], completion)
        in_order = (sorted(group, key=lambda completion: completion.sample) for group in completions)
        return [Group(prompt=p, completions=tuple(c)) for p, c in zip(prompts, in_order, strict=True)]

    def _completion(self, tokens: SampledTokens, version: int) -> Completion:
        assert len(tokens.logprobs) == len(tokens.token_ids), "one log-prob for each token"
        return Completion(
            token_ids=tokens.token_ids,
            text=self._tokenizer.decode(tokens.token_ids, skip_special_tokens=True),
            finish_reason="stop" if tokens.token_ids[-1] in self.eos_ids else "length",
            logprobs=tokens.logprobs,
            sample=tokens.sample,
            weight_version=version,
        )


def eos_ids(module: Any, tokenizer: Tokenizer) -> list[int]:
    """Chat models often end turns with a token that is not the tokenizer's EOS: take both."""
    configured = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return sorted({tokenizer.eos_token_id, *listed})
