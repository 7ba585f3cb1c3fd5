"""From the settings of an environment to a sampler of rollouts with turns."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from priml.config.data import PromptFormat
from priml.config.environments import CustomEnvironment
from priml.errors import UsageError
from priml.factories.environments import observed_tokens, with_environment
from priml.rollout.tool_loop import ToolLoop
from small_tokenizers import CHATML, byte_tokenizer

TOOL = """
class Tool:
    def reset(self, problem): ...
    def step(self, text): return "", None, True
    def close(self): ...

def make():
    return Tool()

class Half:
    def reset(self, problem): ...
"""
SAMPLER: Any = SimpleNamespace()


def settings(folder: Path, name: str, **more: Any) -> CustomEnvironment:
    (folder / "tool.py").write_text(TOOL)
    return CustomEnvironment(kind="custom", function=f"{folder / 'tool.py'}:{name}", **more)


def test_without_an_environment_the_sampler_is_as_it_was():
    tokenizer = byte_tokenizer()
    assert with_environment(SAMPLER, None, object(), tokenizer, PromptFormat()) is SAMPLER
    assert observed_tokens(None, tokenizer, PromptFormat()) == 0


@pytest.mark.parametrize("name", ["Tool", "make"])
def test_a_class_or_a_function_makes_the_environment_of_each_rollout(tmp_path: Path, name: str):
    sampler = with_environment(SAMPLER, settings(tmp_path, name), object(), byte_tokenizer(), PromptFormat())
    assert isinstance(sampler, ToolLoop)


def test_what_is_missing_is_named_before_the_run(tmp_path: Path):
    with pytest.raises(UsageError, match=r"environment.function: .*:Half has no step, close; an environment needs"):
        with_environment(SAMPLER, settings(tmp_path, "Half"), object(), byte_tokenizer(), PromptFormat())
    with pytest.raises(UsageError, match=r"has no function 'Other'"):
        with_environment(SAMPLER, settings(tmp_path, "Other"), object(), byte_tokenizer(), PromptFormat())


def test_observations_and_what_the_template_puts_around_them_need_room(tmp_path: Path):
    tokenizer = byte_tokenizer(template=CHATML)
    around = len("<|im_end|>\n<|im_start|>user\n" + "<|im_end|>\n<|im_start|>assistant\n")
    chosen = settings(tmp_path, "Tool", max_turns=3, observation_tokens=10)
    assert observed_tokens(chosen, tokenizer, PromptFormat()) == 2 * (10 + around)
    assert observed_tokens(chosen, tokenizer, PromptFormat(template="plain")) == 2 * 10
