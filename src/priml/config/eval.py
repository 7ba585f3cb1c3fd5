"""Settings of `priml eval`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from priml.config.backend import Device
from priml.config.base import RunDir, Seed, Settings, Temperature
from priml.config.data import PromptFormat, Source
from priml.config.environments import Environment
from priml.config.graders import MathVerifier, Verify
from priml.config.rollout import Sampler, TransformersSampler


class EvalConfig(Settings):
    """Accuracy on held-out problems, greedy and sampled, with confidence intervals."""

    run_dir: RunDir
    """Output folder: `eval.json` and the responses as parquet."""
    model: str
    """A Hugging Face folder or Hub id."""
    data: Annotated[dict[str, Source], Field(min_length=1)]
    """Named sets of problems."""
    prompt: PromptFormat = PromptFormat()
    """How problems are rendered."""
    greedy: bool = True
    """One greedy response per problem (pass@1)."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled responses per problem, for avg@k and pass@k."""
    temperature: Temperature = 1.0
    """Temperature of the sampled responses."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Draw from the most likely tokens alone, as many as have this probability together."""
    max_new_tokens: PositiveInt = 4096
    """Longest response."""
    seed: Seed = 0
    """Seeds the sampling."""
    sampler: Sampler = TransformersSampler()
    """What generates the responses."""
    environment: Environment | None = None
    """What answers the policy between its turns; null: responses of one turn."""
    verify: Verify = MathVerifier()
    """What judges responses."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models you have read."""
    backend: Device = Device()
    """Where it runs."""
