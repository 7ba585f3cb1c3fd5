"""Counts and bytes of a model, read off the real architecture by `planner.trace`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from priml.config.models import Lora


@dataclass(frozen=True, slots=True)
class Shape:
    """The micro-batch whose memory was traced, and how it is computed."""

    rows: int
    length: int
    """Prompt and response tokens of each row."""
    predicted: int
    """Response tokens of each row."""
    precision: str
    """`fp32`; `autocast`: fp32 weights lowered to bf16 on the way (local backend); `bf16`: weights and all in bf16."""
    checkpointing: bool
    adapters: Lora | None = None
    """What learns, if not the weights themselves."""

    @property
    def tokens(self) -> int:
        """Padded tokens of the micro-batch."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes at the worst moment of a pass over a micro-batch, without weights, gradients and optimizer state: the
    activations, lowered copies of weights, the chunked head. Traced operation by operation, not estimated."""

    training: int
    """Forward and backward."""
    scoring: int
    """Forward without gradient, of a model that is trained in the same step: autocast keeps its lowered weights."""
    frozen: int
    """Forward of a model that is never trained."""
    reading: float
    """Per token: forward without gradient and without the head, as prompts are read."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model. Counts are parameters, not bytes."""

    name: str
    parameters: int
    """All parameters, tied ones once."""
    body: int
    """All parameters but the input embeddings and the head."""
    active: int
    """Those of the body that one token is multiplied with: of routed experts, only the ones that it goes to."""
    head: int
    """The output projection, tied or not."""
    embedding: int
    """Input embeddings."""
    tied: bool
    """The head is the embeddings."""
    layers: int
    largest_block: int
    """Parameters of the largest transformer block: the unit that full sharding gathers."""
    width: int
    """Heads times head size: multiplications of one token's attention to another."""
    vocabulary: int
    cache: int
    """Key and value elements kept per token."""
    cache_bytes: int
    """The same in bytes, as the sampler of this process keeps them."""
    state_bytes: int
    """Bytes of recurrent states that a row keeps, however long it is."""
    positions: int | None
    """Tokens of a sequence that the model was made for; null: it knows no limit."""
    is_bound: bool
    """Longer sequences are impossible, not just unfamiliar."""
    largest_matrix: int
    """Parameters of the largest matrix that tokens are multiplied with."""
    footprint: Footprint
    adapters: int = 0
    """Parameters of its low-rank adapters, beside all those above, which are then frozen; 0: it has none."""

    @property
    def as_critic(self) -> ModelFacts:
        """The same with one output and a bias instead of the head."""
        head = self.head // self.vocabulary + 1
        parameters = self.body + self.embedding + head
        return replace(self, parameters=parameters, head=head, tied=False, vocabulary=1)

    @property
    def root(self) -> int:
        """Parameters outside the blocks: full sharding keeps them gathered for the whole pass."""
        return self.embedding + (0 if self.tied else self.head)

    def forward_flops(self, tokens: float, predicted: float, length: float) -> float:
        """Multiplications and additions of one forward pass over `tokens` in sequences of `length`. `predicted` of them
        go through the head. A token attends to half of its sequence on average."""
        body = self.active + self.adapters
        return 2.0 * body * tokens + 2.0 * self.head * predicted + self.attention_flops(tokens, length)

    def training_flops(self, tokens: float, predicted: float, length: float, *, checkpointing: bool) -> float:
        """Forward and backward. The backward pass of a matrix takes as many operations as the forward pass, and as many
        more if it learns; that of attention always twice as many. The chunked head is multiplied once more in the
        backward pass, and with checkpointing everything else as well."""
        once = self.forward_flops(tokens, predicted, length)
        learning = 2.0 * self.adapters * tokens if self.adapters else once - self.attention_flops(tokens, length)
        back = once + self.attention_flops(tokens, length) + learning
        return once + back + (once if checkpointing else 2.0 * self.head * predicted)

    def attention_flops(self, tokens: float, length: float) -> float:
        """Scores and weighted sums of causal attention."""
        return 2.0 * self.width * self.layers * tokens * length
