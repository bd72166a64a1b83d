"""vLLM in the worker's own process: the only module that imports vllm.

One engine lives as long as the run; new weights are swapped in place (`reload_weights`) and the prefix
cache of the old ones is dropped. vLLM is imported when an engine is built, after its environment is set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

from pydantic import Field, field_validator

from policies.base.bounds import MAX_COUNT, MAX_CPUS, MAX_MEGABYTES, MAX_TOKENS
from policies.base.component import Component
from policies.base.errors import RolloutError
from policies.base.records import PolicyVersion, StopReason
from policies.base.requirements import Requirements
from policies.base.seeds import derive_seed
from policies.storage.policy_store import check_files
from workers.cluster.compute_threads import bind_cores, cores_in, follow_threads
from workers.cluster.heartbeat import report_progress
from workers.cluster.private_folder import private_folder
from workers.rollout.chat.tokenizer_chat import TokenizerChat
from workers.rollout.engine import Generation, GenerationRequest, RolloutEngine

_CPU_BLOCK_TOKENS = 32
"""Tokens per block of the key-value cache on a CPU; the smallest that its attention kernel takes."""
_STOP_REASONS = {"stop": StopReason.STOP, "length": StopReason.LENGTH}
"""Those of vLLM's finish reasons that are the policy's or the budget's doing. The others (`abort`, `error`,
`repetition`, and what a later version may add) broke the completion off."""


class VllmEngine(RolloutEngine):
    """Samples with vLLM, on CPU or GPU."""

    class Config(Component.Config):
        """Settings of the engine; sampling settings stand under `rollout`."""

        max_model_len: int | None = Field(default=None, ge=16, le=MAX_TOKENS)
        """Longest prompt plus completion in tokens; null takes the model's own limit."""
        max_num_seqs: int = Field(default=128, ge=1, le=MAX_COUNT)
        """Sequences that advance together."""
        gpu_memory_utilization: float = Field(default=0.5, gt=0, le=1)
        """Share of a GPU's memory for weights and cache; the trainer needs the rest when it is the same GPU."""
        cpu_cache_gib: int = Field(default=1, ge=1, le=MAX_MEGABYTES // 1024)
        """Size of the key-value cache on a CPU, in GiB."""
        cpu_cores: str | None = None
        """Cores to compute on, e.g. `0-3`, on a CPU, with a thread on each; null leaves it to `rollout.threads`."""
        tensor_parallel_size: int = Field(default=1, ge=1, le=MAX_CPUS)
        """GPUs that share one engine."""
        enforce_eager: bool = True
        """Skip graph capture: starts faster (70 s on a CPU), runs a little slower (about 12 % there)."""
        prefix_caching: bool = True
        """Reuse the computed prompt among the samples of a prompt and the turns of a trajectory."""
        trust_remote_code: bool = False
        """Run Python code that comes with the model. Off unless you have read that code."""

        def requires(self) -> Requirements:
            """The package, and the links between its processes where there are several."""
            parallel = self.tensor_parallel_size
            links = (
                f"vLLM with tensor_parallel_size {parallel}: links between its {parallel} processes, on VLLM_HOST_IP; "
                "no authentication of their own"
            )
            ports = (links,) if parallel > 1 else ()
            return super().requires() + Requirements(packages=("vllm",), ports=ports)

        @field_validator("cpu_cores")
        @classmethod
        def _cores_can_be_read(cls, text: str | None) -> str | None:
            try:
                cores_in(text or "0")
            except ValueError as error:
                raise ValueError("cores are numbers and ranges, such as 0-3 or 0,2,4-7") from error
            return text

    def __init__(
        self,
        config: Component.Config,
        *,
        policy: PolicyVersion,
        dtype: str = "bfloat16",
        seed: int = 0,
    ) -> None:
        self.config = cast(VllmEngine.Config, config)
        check_files(policy)
        if self.config.cpu_cores is not None:
            bind_cores(cores_in(self.config.cpu_cores))
        follow_threads()
        self._on_cpu = not _has_gpu()
        _prepare_environment(self.config, on_cpu=self._on_cpu)
        from vllm import LLM

        arguments: dict[str, Any] = {}
        if self.config.max_model_len is not None:
            arguments["max_model_len"] = self.config.max_model_len
        if self._on_cpu:
            # The default there is 128: a shorter prompt would never be found in the prefix cache.
            arguments["block_size"] = _CPU_BLOCK_TOKENS
        else:
            arguments["gpu_memory_utilization"] = self.config.gpu_memory_utilization
        if self.config.tensor_parallel_size == 1:
            arguments["distributed_executor_backend"] = "uni"
        self._llm = LLM(
            model=policy.path,
            dtype=cast(Any, dtype),
            seed=seed % 2**31,
            max_num_seqs=self.config.max_num_seqs,
            tensor_parallel_size=self.config.tensor_parallel_size,
            enforce_eager=self.config.enforce_eager,
            enable_prefix_caching=self.config.prefix_caching,
            trust_remote_code=self.config.trust_remote_code,
            # Sampling settings are the request's alone, never those of the folder's generation_config.json.
            generation_config="vllm",
            disable_log_stats=True,
            **arguments,
        )
        self.chat = TokenizerChat.load(policy.path, trust_remote_code=self.config.trust_remote_code)
        self.max_context = int(self._llm.llm_engine.model_config.max_model_len)
        self._under_way: dict[str, int] = {}
        """Ticket by vLLM's request id."""
        self._finished: list[tuple[int, Generation]] = []
        """Answers that came out while `generate` waited for its own."""
        self._tickets = 0
        self.serving = policy

    def load_policy(self, policy: PolicyVersion) -> None:
        check_files(policy)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": policy.path})
        if self._on_cpu:
            self._llm.apply_model(repack_tied_head)
        if not self._llm.reset_prefix_cache():
            raise RolloutError(
                "vLLM could not drop the prefix cache after loading policy version "
                f"{policy.number}: requests are still running"
            )
        self.serving = policy

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        tickets = self._add(requests)
        found: dict[int, Generation] = {}
        others: list[tuple[int, Generation]] = []
        while len(found) < len(tickets):
            for ticket, generation in self.advance():
                if ticket in tickets:
                    found[ticket] = generation
                else:
                    others.append((ticket, generation))
        self._finished.extend(others)
        return [found[ticket] for ticket in tickets]

    def submit(self, request: GenerationRequest) -> int:
        return self._add([request])[0]

    def advance(self) -> list[tuple[int, Generation]]:
        finished, self._finished = self._finished, []
        if not self._under_way:
            return finished
        outputs = self._llm.llm_engine.step()
        report_progress(tokens=len(outputs))  # one token of each request that answered in this step
        for output in outputs:
            if output.finished:
                ticket = self._under_way.pop(output.request_id)
                finished.append((ticket, self.worded(_generation(output))))
        return finished

    def abandon(self) -> None:
        self._llm.llm_engine.abort_request(list(self._under_way))
        self._under_way.clear()
        self._finished.clear()

    def _add(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """Hand requests to vLLM's scheduler; all of them or, when it refuses one, none."""
        from vllm.inputs import TokensPrompt

        if not requests:
            return []
        if self._on_cpu:
            _begin_stream(*(r.seed for r in requests))
        prompts = [TokensPrompt(prompt_token_ids=list(r.prompt_token_ids)) for r in requests]
        internal = self._llm.enqueue(
            cast(Any, prompts), [self._parameters(r) for r in requests], use_tqdm=False
        )
        tickets = range(self._tickets + 1, self._tickets + 1 + len(requests))
        self._tickets += len(requests)
        # `enqueue` returns `<id>-<8 random characters>`; answers come under `<id>`.
        external = [name.split("-")[0] for name in internal]
        self._under_way.update(zip(external, tickets, strict=True))
        return list(tickets)

    def _parameters(self, request: GenerationRequest) -> Any:
        """Sampling settings of one request, in vLLM's words."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        choices = list(request.choices)
        return SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            top_k=request.sampling.top_k,
            max_tokens=request.sampling.max_tokens,
            stop=list(request.sampling.stop) or None,
            # What ends a turn is what the chat format says, no more and no less; a grammar needs vLLM's own end.
            stop_token_ids=sorted(self.chat.terminators),
            ignore_eos=not choices,
            include_stop_str_in_output=True,
            logprobs=0,
            # Per-request seeds crash on the CPU when a prompt is prefilled in chunks: see `_begin_stream`.
            seed=None if self._on_cpu else request.seed,
            structured_outputs=StructuredOutputsParams(choice=choices) if choices else None,
        )


def repack_tied_head(model: Any) -> bool:
    """Give a tied output head its new weights on a CPU; returns whether there was anything to do.

    vLLM 0.32 keeps a packed copy of the head for its CPU kernels. A checkpoint with tied embeddings has no
    `lm_head.weight`, so `reload_weights` skips the head: the tied parameter is new, the packed copy is the old
    one, and the sampler would mix new layers with the old head (3.6 nats per token apart in a test of ours).
    """
    head = getattr(model, "lm_head", None)
    if head is None or not hasattr(head, "cpu_linear"):
        return False
    head.quant_method.process_weights_after_loading(head)
    return True


def _generation(output: Any) -> Generation:
    """Our record of one vLLM request; the terminator that the model wrote is kept.

    What vLLM broke off is an error without tokens: nobody knows what the policy would have written.
    """
    completion = output.outputs[0]
    stop = _STOP_REASONS.get(completion.finish_reason)
    if stop is None:
        error = f"vLLM ended the completion with finish_reason {completion.finish_reason!r}"
        return Generation.failed(error)
    ids = tuple(completion.token_ids)
    logprobs = tuple(
        step[token].logprob for token, step in zip(ids, completion.logprobs, strict=True)
    )
    return Generation(token_ids=ids, logprobs=logprobs, text=completion.text, stop_reason=stop)


def _begin_stream(*seeds: int) -> None:
    """Begin a stream of random numbers on the CPU that belongs to these requests alone.

    vLLM draws there from torch's own generator of this process. Engines that were started with one seed would draw the
    same numbers, and so would one that is started again; requests of other samples, rounds or runs have other seeds.
    """
    import torch

    torch.manual_seed(derive_seed("vllm", *seeds))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _prepare_environment(config: VllmEngine.Config, *, on_cpu: bool) -> None:
    """Set what vLLM reads from the environment at import; what the user has set stays."""
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # By default both lie in /tmp: compiled code that is loaded from a name that others can take, and sockets.
        "TORCHINDUCTOR_CACHE_DIR": str(private_folder() / "torchinductor"),
        "VLLM_RPC_BASE_PATH": str(private_folder()),
    }
    if on_cpu:
        cores = sorted(os.sched_getaffinity(0))
        settings["VLLM_CPU_KVCACHE_SPACE"] = str(config.cpu_cache_gib)
        # Read by the processes of an engine that has several; in one process the threads are those of OMP_NUM_THREADS.
        settings["VLLM_CPU_OMP_THREADS_BIND"] = config.cpu_cores or ",".join(str(c) for c in cores)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
