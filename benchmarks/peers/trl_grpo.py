"""The other side of `step.py`: TRL's GRPOTrainer, in an environment of its own. It imports nothing of priml."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Turns(TrainerCallback):
    """A step for each line that comes in."""

    def __init__(self) -> None:
        self.tokens = 0
        self._began = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not sys.stdin.readline():
            control.should_training_stop = True
        self._began = time.process_time(), time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        cpu, wall = self._began
        answer = {
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "tokens": self.tokens,
        }
        print(json.dumps(answer), flush=True)


def main(given: dict[str, Any]) -> None:
    """As many steps as there are turns."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    module = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    turns = Turns()

    def share(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        """The share of letters."""
        turns.tokens = sum(map(len, completion_ids))
        return [sum(letter.isalpha() for letter in text) / max(len(text), 1) for text in completions]

    rows = given["prompts"] * given["group"]
    limits = {} if given["ragged"] else {"min_new_tokens": given["new_tokens"]}
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=given.get("micro_batch", rows),
            gradient_accumulation_steps=rows // given.get("micro_batch", rows),
            num_generations=given["group"],
            max_completion_length=given["new_tokens"],
            generation_kwargs=limits,
            max_steps=given["steps"],
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            temperature=1.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # it would only be slower
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1000,
        )
        lines = Path(given["data"]).read_text().splitlines()
        data = Dataset.from_list([{"prompt": json.loads(line)["prompt"]} for line in lines])
        trainer = GRPOTrainer(
            model=module,
            reward_funcs=share,
            args=settings,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[turns],
        )
        trainer.train()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
