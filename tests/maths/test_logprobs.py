"""Chunked token log-probabilities: values, gradients, memory, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from priml.maths.logprobs import token_logprobs

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"softcap": 3.0},
    {"logit_scale": 0.25},
    {"temperature": 1.3, "softcap": 2.0, "logit_scale": 1.7},
]


def _inputs(
    num_tokens: int = 11, width: int = 5, vocabulary: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(vocabulary, (num_tokens,), generator=generator)
    return normal(num_tokens, width), normal(vocabulary, width), normal(vocabulary), targets


def _naive(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    logits = logit_scale * torch.nn.functional.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = (logits / temperature).log_softmax(1)
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(1)


def _gradients(outputs: tuple[Tensor, Tensor], leaves: list[Tensor], weights: tuple[float, float]) -> Any:
    tilt = torch.linspace(0.5, 2.0, len(outputs[0]), dtype=outputs[0].dtype)
    total = (weights[0] * tilt * outputs[0] + weights[1] * tilt.flip(0) * outputs[1]).sum()
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 11, 100, None])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_chunks_give_the_values_and_gradients_of_the_whole(
    options: dict[str, Any], with_bias: bool, chunk_tokens: int | None
) -> None:
    hidden, weight, bias, targets = _inputs()
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    head_bias = bias if with_bias else None
    chunked = token_logprobs(hidden, weight, targets, head_bias_V=head_bias, chunk_tokens=chunk_tokens, **options)
    naive = _naive(hidden, weight, head_bias, targets, **options)
    torch.testing.assert_close(chunked, naive, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(
        _gradients(chunked, leaves, (1.0, 0.3)), _gradients(naive, leaves, (1.0, 0.3)), atol=1e-12, rtol=1e-10
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_agree_with_finite_differences(options: dict[str, Any]) -> None:
    hidden, weight, bias, targets = _inputs(num_tokens=5, width=3, vocabulary=4)

    def both(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(h, w, targets, head_bias_V=b, chunk_tokens=2, **options)

    assert torch.autograd.gradcheck(both, (hidden, weight, bias))


@pytest.mark.parametrize("output", [0, 1], ids=["logprobs", "entropies"])
def test_one_output_alone_can_be_differentiated(output: int) -> None:
    hidden, weight, bias, targets = _inputs()
    chunked = token_logprobs(hidden, weight, targets, head_bias_V=bias, chunk_tokens=4)[output]
    naive = _naive(hidden, weight, bias, targets)[output]
    leaves = [hidden, weight, bias]
    torch.testing.assert_close(
        torch.autograd.grad(chunked.sum(), leaves), torch.autograd.grad(naive.sum(), leaves), atol=1e-12, rtol=1e-10
    )


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str) -> None:
    names = ["hidden", "weight", "bias"]
    *leaves, targets = _inputs()
    hidden, weight, bias = (x.detach() if n == frozen else x for n, x in zip(names, leaves, strict=True))
    trained = [x for n, x in zip(names, leaves, strict=True) if n != frozen]
    chunked = token_logprobs(hidden, weight, targets, head_bias_V=bias, chunk_tokens=4)
    naive = _naive(hidden, weight, bias, targets)
    torch.testing.assert_close(
        _gradients(chunked, trained, (1.0, 1.0)), _gradients(naive, trained, (1.0, 1.0)), atol=1e-12, rtol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_values_with_and_without_gradients_are_the_same_bits(options: dict[str, Any], dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = _inputs(num_tokens=50, width=16, vocabulary=33, dtype=dtype)
    with_grad = token_logprobs(hidden, weight, targets, head_bias_V=bias, chunk_tokens=8, **options)
    with torch.no_grad():
        without = token_logprobs(hidden, weight, targets, head_bias_V=bias, chunk_tokens=8, **options)
    assert with_grad[0].requires_grad
    assert not without[0].requires_grad
    for a, b in zip(with_grad, without, strict=True):
        assert torch.equal(a, b)


class _LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor any operation makes, forward or backward, and counts those of a size."""

    def __init__(self, min_numel: int = 0) -> None:
        super().__init__()
        self.min_numel = min_numel
        self.largest = 0
        self.num_large = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
                self.num_large += value.numel() >= self.min_numel
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_all_tokens_never_exist(dtype: torch.dtype) -> None:
    num_tokens, vocabulary, chunk = 300, 200, 16
    hidden, weight, bias, targets = _inputs(num_tokens, 8, vocabulary, dtype)
    with _LargestTensor() as seen:
        logprobs, entropies = token_logprobs(hidden, weight, targets, head_bias_V=bias, softcap=5.0, chunk_tokens=chunk)
        (logprobs.sum() + 0.1 * entropies.sum()).backward()
    assert weight.grad is not None
    assert seen.largest == max(chunk * vocabulary, hidden.numel(), weight.numel()) < num_tokens * vocabulary


def test_the_naive_way_does_make_them() -> None:
    """The witness of the test above: the same observer sees the logits where they exist."""
    hidden, weight, bias, targets = _inputs(300, 8, 200)
    with _LargestTensor() as seen:
        _naive(hidden, weight, bias, targets)
    assert seen.largest == 300 * 200


def test_the_default_chunk_follows_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("priml.maths.logprobs.MAX_CHUNK_LOGITS", 1000)
    hidden, weight, _, targets = _inputs(200, 4, 50, torch.float32)
    with _LargestTensor() as seen:
        token_logprobs(hidden, weight, targets)
    assert seen.largest == 1000  # 20 tokens of a vocabulary of 50
    monkeypatch.setattr("priml.maths.logprobs.MAX_CHUNK_LOGITS", 10)
    with _LargestTensor() as seen:
        token_logprobs(hidden.detach(), weight.detach(), targets)
    assert seen.largest == hidden.numel()  # one token at a time: 50 logits


def test_bfloat16_inputs_give_float32_results_and_gradients_of_their_own_dtype() -> None:
    hidden, weight, bias, targets = _inputs(64, 16, 40, torch.bfloat16)
    logprobs, entropies = token_logprobs(hidden, weight, targets, head_bias_V=bias, chunk_tokens=10)
    assert logprobs.dtype == entropies.dtype == torch.float32
    (logprobs.sum() + entropies.sum()).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    # The product rounds to bfloat16, the log-softmax after it does not.
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    torch.testing.assert_close(logprobs, logits.log_softmax(1).gather(1, targets[:, None])[:, 0])


def test_autocast_multiplies_in_its_dtype_and_keeps_the_head_gradient_in_float32() -> None:
    hidden, weight, bias, targets = _inputs(64, 16, 40, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked = token_logprobs(hidden, weight, targets, head_bias_V=bias, chunk_tokens=10)
        logits = torch.nn.functional.linear(hidden, weight, bias)
    assert logits.dtype == torch.bfloat16
    logprobs = logits.float().log_softmax(1)
    expected = (logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(1))
    torch.testing.assert_close(chunked, expected)
    leaves = [hidden, weight, bias]
    ours, naive = (_gradients(outputs, leaves, (1.0, 0.3)) for outputs in (chunked, expected))
    exact = _gradients(_naive(hidden, weight, bias, targets), leaves, (1.0, 0.3))
    assert all(g.dtype == torch.float32 for g in ours)
    for a, b, c in zip(ours, naive, exact, strict=True):
        assert float((a - c).norm()) <= 1.5 * float((b - c).norm()) + 1e-6  # no worse than autocast itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_gradient_of_many_small_chunks_is_summed_in_float32(dtype: torch.dtype) -> None:
    num_tokens = 2000
    hidden = torch.ones(num_tokens, 1, dtype=dtype)
    weight = torch.zeros(2, 1, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = token_logprobs(hidden, weight, torch.zeros(num_tokens, dtype=torch.int64), chunk_tokens=1)
    logprobs.sum().backward()
    # Each token adds (1/2, -1/2). A bfloat16 sum would stop growing at 128.
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1000.0], [-1000.0]]


def test_calling_backward_inside_autocast_changes_no_gradient() -> None:
    hidden, weight, bias, targets = _inputs(64, 16, 40, torch.float32)
    leaves = [hidden, weight, bias]
    outside = _gradients(token_logprobs(hidden, weight, targets, head_bias_V=bias), leaves, (1.0, 0.3))
    outputs = token_logprobs(hidden, weight, targets, head_bias_V=bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = _gradients(outputs, leaves, (1.0, 0.3))
    for a, b in zip(outside, inside, strict=True):
        assert torch.equal(a, b)


def test_an_unused_entropy_costs_nothing_backward() -> None:
    hidden, weight, _, targets = _inputs(64, 16, 40, torch.float32)
    num_operations: list[int] = []
    for entropy_weight in (None, 0.1):
        logprobs, entropies = token_logprobs(hidden, weight, targets)
        total = logprobs.sum() if entropy_weight is None else logprobs.sum() + entropy_weight * entropies.sum()
        with _LargestTensor(min_numel=64 * 40) as seen:
            total.backward()
        num_operations.append(seen.num_large)
    assert num_operations[0] < num_operations[1]


def test_no_tokens_are_no_trouble() -> None:
    hidden, weight, bias, targets = _inputs(num_tokens=0)
    logprobs, entropies = token_logprobs(hidden, weight, targets, head_bias_V=bias)
    (logprobs.sum() + entropies.sum()).backward()
    assert logprobs.shape == entropies.shape == (0,)
    assert weight.grad is not None
    assert not weight.grad.any()


def test_entropy_of_a_uniform_distribution_is_log_vocabulary() -> None:
    _, entropies = token_logprobs(torch.zeros(3, 4), torch.randn(9, 4), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(entropies, torch.tensor(9.0).log().expand(3))


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"softcap": -1.0}, {"chunk_tokens": 0}])
def test_settings_that_are_not_positive_are_refused(setting: dict[str, Any]) -> None:
    hidden, weight, _, targets = _inputs()
    with pytest.raises(ValueError, match="need a number above 0"):
        token_logprobs(hidden, weight, targets, **setting)
