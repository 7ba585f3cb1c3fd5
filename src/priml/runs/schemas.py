"""The columns of the parquet files in a run folder: one row per response."""

from __future__ import annotations

import pyarrow as pa

_FLOATS = pa.list_(pa.float32())
_SEGMENTS = pa.list_(pa.struct([("num_tokens", pa.int32()), ("weight_version", pa.int32())]))
ROLLOUTS = pa.schema(
    [
        ("step", pa.int32()),
        ("problem_id", pa.string()),
        ("source", pa.string()),
        ("sample", pa.int32()),
        ("weight_version", pa.int32()),
        ("prm_version", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("segments", _SEGMENTS),
        ("turn_rewards", _FLOATS),
        ("finish_reason", pa.string()),
        ("outcome", pa.float32()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("answer", pa.string()),
        ("gold", pa.string()),
        ("filter_status", pa.string()),
        ("step_ends", pa.list_(pa.int32())),
        ("sampler_logprobs", _FLOATS),
        ("old_logprobs", _FLOATS),
        ("entropies", _FLOATS),
        ("prm_logprobs", _FLOATS),
        ("ref_logprobs", _FLOATS),
        ("process_rewards", _FLOATS),
        ("advantages", _FLOATS),
    ]
)
"""`rollouts/000012.parquet` of `priml train`."""

RESPONSES = pa.schema(
    [
        *ROLLOUTS,
        ("decoding", pa.string()),
        ("level", pa.string()),
        ("subject", pa.string()),
        ("difficulty", pa.string()),
    ]
)
"""`NAME.parquet` of `priml eval`; `decoding`: `greedy` or `sampled`. The columns of training are null."""

AGGREGATES = ("min", "mean", "sum", "last")
"""How the rewards of its steps become the score of a response, by name."""
SCORES = pa.schema(
    [
        ("problem_id", pa.string()),
        ("source", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("segments", _SEGMENTS),
        ("outcome", pa.float32()),
        ("gold", pa.string()),
        ("step_ends", pa.list_(pa.int32())),
        ("prm_logprobs", _FLOATS),
        ("ref_logprobs", _FLOATS),
        ("process_rewards", _FLOATS),
        ("step_rewards", _FLOATS),
        *((f"score_{name}", pa.float32()) for name in AGGREGATES),
    ]
)
"""`scores.parquet` of `priml prm`. Named as in the rollout files: what reads those reads this."""
