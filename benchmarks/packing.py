"""What does it save to lay the rows of a micro-batch end to end, without padding?

Rows are scored, and differentiated, in three ways that take turns on the same rows and weights:

    longest   micro-batches in the order drawn, padded to the longest row of all
    sorted    micro-batches by length, padded to their own longest row: `backend.packing: never`
    packed    micro-batches by length, without padding: `backend.packing: always`

`auto` is the way that `backend.packing: auto` takes. Ratios are of processor seconds, each the median over the turns.

`shared prompts`: the responses of a group, padded; packed, each with a prompt of its own; and packed with the prompt
computed once, which is what `always` does.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from common import arguments, write_results
from priml.batch import Batch, Row, collate
from priml.models.forward import LanguageModel, MicroBatch

WAYS = ("longest", "sorted", "packed")


@dataclass(frozen=True)
class Case:
    """So many rows of lengths from a range, on a model of a shape, under a token budget."""

    lengths: tuple[int, int]
    rows: int
    budget: int
    width: int = 256
    layers: int = 4
    is_skewed: bool = False
    """Most rows are short, as responses are: the logarithms of their lengths are spread evenly."""

    @property
    def name(self) -> str:
        low, high = self.lengths
        spread = " (skewed)" if self.is_skewed else ""
        return f"{self.rows} rows of {low} to {high} tokens{spread}, budget {self.budget}, {self.layers} x {self.width}"


CASES = [
    *(Case((20, 500), 32, budget, is_skewed=skewed) for skewed in (True, False) for budget in (2048, 16384)),
    Case((20, 500), 32, 16384, width=64, layers=2, is_skewed=True),
    Case((200, 260), 16, 16384),
    *(Case((20, 60), 128, budget) for budget in (2048, 16384)),
    *(Case((20, 60), 256, 2048, width=width, layers=2) for width in (16, 64)),
    Case((20, 60), 256, 16384, width=64, layers=2),
    Case((20, 60), 32, 2048, width=64, layers=2),
]


@dataclass(frozen=True)
class Shared:
    """Groups of responses to one prompt each, on a model of a shape."""

    name: str
    prompt: tuple[int, int]
    response: tuple[int, int]
    prompts: int
    group: int
    shape: Mapping[str, int]
    budget: int = 2048

    def module(self) -> Any:
        """Random weights."""
        torch.manual_seed(0)
        return Qwen2ForCausalLM(Qwen2Config(**self.shape)).eval()

    def batch(self) -> Batch:
        """Random tokens; lengths are spread evenly."""
        rng = random.Random(0)
        rows = []
        for group in range(self.prompts):
            prompt = [rng.randrange(256) for _ in range(rng.randint(*self.prompt))]
            for _ in range(self.group):
                response = [rng.randrange(256) for _ in range(rng.randint(*self.response))]
                rows.append(Row(prompt, response, outcome=0.0, group=group, step_ends=()))
        return collate(rows, step=0)


def shape(width: int, layers: int, heads: int, kv_heads: int, vocabulary: int, inner: int = 0) -> dict[str, int]:
    """The sizes of a Qwen2."""
    return {
        "hidden_size": width,
        "intermediate_size": inner or 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
    }


SHARED = [
    Shared("SmolLM2's shape", (50, 60), (16, 26), 2, 8, shape(576, 30, 9, 3, 49152, 1536)),
    Shared("4 x 256", (50, 60), (16, 26), 16, 8, shape(256, 4, 4, 2, 512)),
    Shared("4 x 256, short prompts", (16, 20), (64, 128), 16, 8, shape(256, 4, 4, 2, 512)),
    Shared("4 x 256, long prompts", (400, 500), (60, 120), 2, 8, shape(256, 4, 4, 2, 512)),
    Shared("2 x 128", (20, 40), (10, 40), 16, 8, shape(128, 2, 4, 4, 256)),
    Shared("2 x 64", (20, 40), (10, 40), 16, 8, shape(64, 2, 2, 2, 256)),
]
TOY_SHARED = [Shared("1 x 16", (4, 6), (2, 4), 2, 4, shape(16, 1, 2, 2, 256))]
TOY = [Case((3, 12), 6, 48, width=16, layers=1), Case((8, 8), 6, 48, width=16, layers=1)]


class InOrder(LanguageModel):
    """Micro-batches in the order drawn, each row padded to the longest of all."""

    def micro_batches(self, batch: Batch, rows: Sequence[int]) -> Iterator[MicroBatch]:
        longest = batch.tokens_BL.shape[1]
        count = max(1, self.micro_batch_tokens // longest)
        for start in range(0, len(rows), count):
            chosen = torch.tensor(rows[start : start + count])
            responses = batch.response_lengths_B[chosen]
            yield MicroBatch(
                rows_b=chosen,
                tokens_bl=batch.tokens_BL[chosen].long(),
                predicts_bl=torch.nn.functional.pad(batch.loss_mask_BL[chosen, 1:], (0, 1)),
                mask_bt=torch.arange(int(responses.max())) < responses.unsqueeze(1),
            )


def main() -> None:
    """Measure, and write the JSON."""
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    cases, turns = (TOY, 1) if options.quick else (CASES, 3)
    rows = [row for case in cases for row in measure(case, turns)]
    headline = {case.name: compare(case, rows) for case in cases}
    shared = TOY_SHARED if options.quick else SHARED
    headline |= {f"shared prompts, {case.name}": share_prompts(case, turns) for case in shared}
    write_results(options.out, "packing", rows=rows, headline=headline)


def measure(case: Case, turns: int) -> Iterator[dict[str, Any]]:
    """A row per turn and way; the first round of all is left out."""
    models, batch = build(case), draw(case)
    for turn in range(-1, turns):
        for way in WAYS:
            cpu, wall = time.process_time(), time.perf_counter()
            micros = list(models[way].micro_batches(batch, range(len(batch))))
            for micro in micros:
                models[way].score(micro)[0].sum().backward()
            row = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
            models[way].module.zero_grad()
            if turn >= 0:
                yield {"case": case.name, "way": way, "turn": turn, "computed": computed(micros)} | row
    packs = any(micro.packed for micro in models["auto"].micro_batches(batch, range(len(batch))))
    yield {"case": case.name, "way": "auto", "packs": packs}


def share_prompts(case: Shared, turns: int) -> dict[str, Any]:
    """Processor seconds of each way on the responses of some prompts, and what `auto` does."""
    module, batch = case.module(), case.batch()
    ways = {
        "padded": LanguageModel(module, **place(case.budget), packing="never"),
        "packed": LanguageModel(module, **place(case.budget), packing="always"),
        "shared": LanguageModel(module, **place(case.budget), packing="always"),
    }
    ways["packed"].can_share = False
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for way in list(ways) * (turns + 1):
        cpu = time.process_time()
        for micro in ways[way].micro_batches(batch, range(len(batch))):
            ways[way].score(micro)[0].sum().backward()
        spent[way].append(time.process_time() - cpu)
        module.zero_grad()
    medians = {way: statistics.median(seconds[1:]) for way, seconds in spent.items()}
    tokens = {way: computed(list(model.micro_batches(batch, range(len(batch))))) for way, model in ways.items()}
    auto = LanguageModel(module, **place(case.budget), packing="auto")
    return {
        "tokens": tokens,
        "cpu_s": {way: round(seconds, 3) for way, seconds in medians.items()},
        "times_padded": round(medians["padded"] / medians["shared"], 2),
        "times_packed": round(medians["packed"] / medians["shared"], 2),
        "auto_packs": any(micro.packed for micro in auto.micro_batches(batch, range(len(batch)))),
    }


def build(case: Case) -> dict[str, LanguageModel]:
    """The ways over one module."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=case.width,
        intermediate_size=4 * case.width,
        num_hidden_layers=case.layers,
        num_attention_heads=max(1, case.width // 64),
        num_key_value_heads=max(1, case.width // 128),
    )
    module = Qwen2ForCausalLM(config).eval()
    given = place(case.budget)
    return {
        "longest": InOrder(module, **given),
        "sorted": LanguageModel(module, **given, packing="never"),
        "packed": LanguageModel(module, **given, packing="always"),
        "auto": LanguageModel(module, **given, packing="auto"),
    }


def place(budget: int) -> dict[str, Any]:
    """One processor, in single precision."""
    return {"device": torch.device("cpu"), "precision": "fp32", "micro_batch_tokens": budget}


def draw(case: Case) -> Batch:
    """Random tokens; a fifth of each row is its prompt."""
    rng = random.Random(0)
    rows = []
    for group in range(case.rows):
        low, high = case.lengths
        length = round(low * (high / low) ** rng.random()) if case.is_skewed else rng.randint(low, high)
        tokens = [rng.randrange(512) for _ in range(length)]
        prompt = max(1, len(tokens) // 5)
        rows.append(Row(tokens[:prompt], tokens[prompt:], outcome=0.0, group=group, step_ends=()))
    return collate(rows, step=0)


def computed(micros: Sequence[MicroBatch]) -> int:
    """Tokens that go through the model, padding included."""
    return sum(micro.tokens_bl.numel() if micro.packed is None else len(micro.packed.tokens_U) for micro in micros)


def compare(case: Case, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and how many times faster packed is than each of the others."""
    own = [row for row in rows if row["case"] == case.name]
    spent = {w: statistics.median(r["cpu_s"] for r in own if r["way"] == w) for w in WAYS}
    tokens = {w: next(r["computed"] for r in own if r["way"] == w) for w in WAYS}
    return {
        "padding_sorted": round(tokens["sorted"] / tokens["packed"], 2),
        "cpu_s": {w: round(s, 3) for w, s in spent.items()},
        "times_longest": round(spent["longest"] / spent["packed"], 2),
        "times_sorted": round(spent["sorted"] / spent["packed"], 2),
        "auto_packs": next(r["packs"] for r in own if r["way"] == "auto"),
    }


if __name__ == "__main__":
    main()
