"""Settings of rollouts: the sampler, what is drawn, and which prompts a step keeps."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from priml.config.base import Settings, Share, ShortForm, Temperature


class SamplerSettings(Settings):
    """What every kind of sampler answers to planner and factories. A kind overrides what differs.

    Its fields include `kind` and `max_rows`, the responses generated at once.
    """

    @property
    def devices(self) -> int:
        """Devices of one sampler."""
        return 1

    @property
    def holds_own_weights(self) -> bool:
        """It is an engine with a copy of the weights in a form of its own: every update is sent and verified."""
        return False

    @property
    def shares_weights(self) -> bool:
        """In the trainer's process it reads the very weights that are trained."""
        return False

    @property
    def separate_adapters(self) -> bool:
        """It computes adapters beside the weights, so that updates hold adapters alone."""
        return False

    @property
    def sleeps(self) -> bool:
        """It gives its memory back while the trainer works."""
        return False

    @property
    def compute_dtype(self) -> Literal["auto", "float32", "bfloat16"]:
        """What it computes in; `auto`: what the trainer does."""
        return "auto"

    @property
    def reserved_cache_gib(self) -> float | None:
        """Memory that it reserves for keys and values on each device; None: its cache grows with the rows."""
        return None

    @property
    def launches(self) -> Literal["operations", "kernels", "graphs"]:
        """What Python starts in a decoding step: every operation, fewer large kernels, or recorded graphs."""
        return "operations"


class TransformersSampler(SamplerSettings):
    """Sampling in this process with transformers models and a key-value cache."""

    kind: Literal["transformers"] = "transformers"
    max_rows: PositiveInt = 1024
    """Responses generated at once; lower it when the key-value cache does not fit."""

    @property
    def shares_weights(self) -> bool:
        return True


class TrainingTransformersSampler(TransformersSampler):
    """`TransformersSampler` in training."""

    copy_weights: bool = False
    """Sample from a copy of the weights (two are kept), as `sampling.max_staleness` needs in one process."""

    @property
    def shares_weights(self) -> bool:
        return not self.copy_weights


class VllmSampler(SamplerSettings):
    """Sampling with vLLM (the `vllm` extra): an engine in this process, or in each sampler of `backend.kind: ray`. It
    gets the policy's weights after every step. Each transfer is verified: engine and trainer must agree on the
    log-probs of a short text."""

    kind: Literal["vllm"]
    max_rows: PositiveInt = 256
    """Responses generated at once; the engine queues the others. Raise it on a large GPU."""
    kv_cache_gib: PositiveFloat = 4.0
    """Memory for keys and values on each device. Raise it when long responses are slow (the engine then interrupts some
    of them), lower it when the trainer runs out of memory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that the engine computes in. `auto`: that of the trainer (`backend.precision`). Take `float32`, twice the
    memory, when `sampler/mismatch_mean` is too large."""
    tensor_parallel: PositiveInt = 1
    """Devices that one engine is spread over; raise it when the model does not fit on one."""
    enforce_eager: bool = True
    """`false` compiles the model first: minutes at the start, faster steps in a long run."""
    adapters: Literal["merged", "separate"] = "merged"
    """What the engine gets of a policy with `lora` after every step. `merged`: all weights, adapters added; `separate`:
    the adapters alone, which it multiplies beside the weights: a small transfer, but each token costs more. Choose it
    where `time/sync` is long."""
    sleep: bool = False
    """Free the engine's memory while the trainer works (GPUs only): weights move to the host's memory, keys and values
    are discarded. Turn it on where trainer and engine share devices and do not fit together."""
    probe_bound: PositiveFloat | None = None
    """The run stops when engine and trainer differ by more than this many nats per token after a push; null: 0.001 in
    float32, 0.1 in bfloat16."""

    @property
    def devices(self) -> int:
        return self.tensor_parallel

    @property
    def holds_own_weights(self) -> bool:
        return True

    @property
    def separate_adapters(self) -> bool:
        return self.adapters == "separate"

    @property
    def sleeps(self) -> bool:
        return self.sleep

    @property
    def compute_dtype(self) -> Literal["auto", "float32", "bfloat16"]:
        return self.dtype

    @property
    def reserved_cache_gib(self) -> float | None:
        return self.kv_cache_gib

    @property
    def launches(self) -> Literal["operations", "kernels", "graphs"]:
        return "kernels" if self.enforce_eager else "graphs"


def _is_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"found {url!r}, need an address such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        # Without it: settings are written to files.
        raise ValueError("found a key or password in it, need the environment variable OPENAI_API_KEY for that")
    return url.rstrip("/")


class OpenAISampler(Settings):
    """Responses of a server with the interface of OpenAI (the `api` extra): vLLM, SGLang, llama.cpp, a provider. A key
    is read from the environment variable `OPENAI_API_KEY`."""

    kind: Literal["openai"]
    base_url: Annotated[str, AfterValidator(_is_address)]
    """Its address, which mostly ends in `/v1`."""
    model: str
    """The model's name there."""
    concurrency: Annotated[int, Field(gt=0, le=1024)] = 32
    """Requests at a time. Raise it when the server has room for more."""
    timeout: PositiveFloat = 600.0
    """Seconds that one request may take. Raise it for long responses of a slow server."""
    retries: Annotated[int, Field(ge=0, le=20)] = 6
    """Further attempts after one that failed, with growing pauses or those that the server asks for. What fails then is
    undecided."""


Sampler = Annotated[TransformersSampler | VllmSampler, Field(discriminator="kind"), ShortForm("transformers")]
EvalSampler = Annotated[
    TransformersSampler | VllmSampler | OpenAISampler, Field(discriminator="kind"), ShortForm("transformers")
]
TrainingSampler = Annotated[
    TrainingTransformersSampler | VllmSampler, Field(discriminator="kind"), ShortForm("transformers")
]


class Sampling(Settings):
    """How responses are drawn during training."""

    group_size: Annotated[int, Field(gt=0, le=65_536)] = 4
    """Responses per prompt (K)."""
    temperature: Temperature = 1.0
    """Sampling temperature; the policy's log-probs are taken at the same temperature."""
    max_new_tokens: PositiveInt = 3072
    """Longest response; longer ones are cut with finish_reason `length`."""
    max_staleness: NonNegativeInt = 0
    """How many updates the policy may be ahead of the weights that sampled a batch. 0: sampling and training take
    turns. 1 or more: batches are sampled while training goes on, up to so many ahead; `loss.importance` corrects for
    the difference."""


class Batch(Settings):
    """How much one step trains on."""

    prompts: PositiveInt = 256
    """Prompts that survive the filter, per step."""
    draw: PositiveInt | None = None
    """Prompts sampled in the first round of a step; null draws `prompts`. Later rounds follow the pass rate."""


class Filter(Settings):
    """Which prompts are worth learning from: mean outcome inside the band, both ends inclusive (paper section 3.3)."""

    low: Share = 0.2
    """Drop prompts solved less often than this: too hard so far."""
    high: Share = 0.8
    """Drop prompts solved more often than this: nothing left to learn."""
    max_rounds: PositiveInt = 20
    """Sampling rounds per step before the run stops as starved."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"need low <= high, got low={self.low:g}, high={self.high:g}; swap them")
        return self
