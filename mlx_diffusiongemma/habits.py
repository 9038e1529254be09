"""Names from mlx-lm, mlx-vlm and other programs, and what does the same here.

Error messages about unknown names use these tables, in Python and on the command line, so that nobody has to
guess. docs/coming-from-mlx-lm.md shows the frequent ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from dis import opname
from functools import wraps
from inspect import signature
from types import FrameType
from typing import NamedTuple, ParamSpec, TypeVar

from .errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

CLOSE = 0.75  # how alike a misspelt name must be to the one that is suggested, from 0 to 1

# Keywords of `generate` and `generate_batch` that are not settings.
KEYWORDS = (
    *(
        "prompt",
        "prompts",
        "thinking",
        "system",
        "tools",
        "seed",
        "n",
        "candidate",
        "schema",
        "regex",
        "grammar",
    ),
    *("choices", "draft", "noise_level", "pins", "trace", "on_step", "prompt_cache", "timeout"),
    *("allow_special_tokens", "batch_size", "progress"),
)


class Habit(NamedTuple):
    """names: of one thing elsewhere, options with underscores. python, command: the advice for either."""

    names: str
    python: str
    command: str


def _both(names: str, advice: str) -> Habit:
    return Habit(names, advice, advice)


_TEXT_ONLY = "text is the only input; leave it out"
_NO_CODE = "no code from a checkpoint is run; leave it out"
_NO_ADAPTERS = "adapters are not read; merge them into the weights first"

_GENERATE = (
    Habit(
        "max_tokens m max_length gen_length max_output_tokens max_completion_tokens",
        "use max_new_tokens",
        "use --max-new-tokens",
    ),
    Habit(
        "prompt p messages",
        "it is the third argument: text, chat messages or token ids",
        "the prompt is an argument, in quotes: mlx_dg generate 'Why is the sky blue?' (- for standard input)",
    ),
    Habit(
        "temp temperature",
        "the temperature falls from t_max to t_min over the steps of a canvas; set these two",
        "the temperature falls over the steps of a canvas; in Python, t_max= and t_min= of generate set it",
    ),
    Habit(
        "top_p top_k min_p min_tokens_to_keep top_n_sigma p_less typical_p xtc_probability xtc_threshold "
        "xtc_special_tokens logit_bias repetition_penalty repetition_context_size presence_penalty "
        "presence_context_size frequency_penalty frequency_context_size",
        "a canvas is sampled as a whole; entropy_bound says how much a step accepts, and docs/samplers.md "
        "shows how to write a sampler",
        "a canvas is sampled as a whole; mlx_dg generate --entropy-bound says how much a step accepts",
    ),
    Habit(
        "logits_processors",
        "use schema=, regex=, grammar= or choices= for the shape of the answer, or pins= for single tokens",
        "",
    ),
    Habit("system_prompt instructions", "use system", "use --system"),
    Habit(
        "verbose stream",
        "nothing is printed; iterate the generation for its blocks, and print(generation.stats.table())",
        "the answer always appears block by block; mlx_dg generate --stats adds statistics",
    ),
    Habit("enable_thinking thinking_mode", "use thinking=True", "use --thinking"),
    Habit("max_thinking_tokens", "use thinking_budget", "use --thinking-budget"),
    _both(
        "thinking_start_token thinking_end_token skip_special_tokens",
        "thought and answer are told apart by token ids, and hold no special tokens; leave it out",
    ),
    Habit(
        "steps num_steps denoising_steps num_inference_steps",
        "use max_denoising_steps",
        "use --max-denoising-steps",
    ),
    Habit(
        "threshold min_threshold diffusion_sampler",
        "use sampler=ConfidenceThreshold(p)",
        "the sampler is the released one, an entropy bound; in Python, sampler= takes ConfidenceThreshold(p)",
    ),
    Habit(
        "stability_steps",
        "use stability_threshold",
        "in Python, stability_threshold= of generate sets it",
    ),
    _both(
        "block_length diffusion_full_canvas diffusion_min_canvas_length diffusion_max_canvas_length",
        "the checkpoint says how long a canvas is; leave it out",
    ),
    _both(
        "num_to_transfer max_transfer_per_step editing_threshold max_post_steps",
        "that belongs to models that mask tokens; leave it out",
    ),
    Habit(
        "stop stop_words stop_tokens eos_tokens eos_token_ids extra_eos_token",
        "use eos_token_id, the ids that end the answer",
        "in Python, eos_token_id= of generate takes the ids that end the answer",
    ),
    Habit(
        "max_kv_size kv_bits kv_group_size quantized_kv_start kv_key_bits kv_value_bits kv_key_scheme "
        "kv_value_scheme kv_quant_scheme expert_cache_gb",
        "keys and values are kept as they are; a smaller prefill_step_size saves memory",
        "keys and values are kept as they are; mlx_dg generate --prefill-step-size 512 saves memory",
    ),
    Habit(
        "prompt_cache_file prompt_cache_state prompt_caches",
        "use prompt_cache=PromptCache(model)",
        "mlx_dg chat encodes only what is new in each turn; in Python, use prompt_cache=PromptCache(model)",
    ),
    _both(
        "draft_model num_draft_tokens draft_kind draft_block_size",
        "each step already settles many tokens, so there is no draft model; leave it out",
    ),
    _both("adapter_path", _NO_ADAPTERS),
    _both("trust_remote_code", _NO_CODE),
    _both("quantize_activations qa q", "activations are not quantized; leave it out"),
    _both(
        "image images audio audios video videos resize_shape fps video_num_frames video_min_frames "
        "video_max_frames processor_kwargs output_modality output ref_audio task size workflow num_frames "
        "last_image reference guidance prompt_expansion_model",
        _TEXT_ONLY,
    ),
    Habit(
        "use_default_chat_template chat_template_config chat_template_args",
        "the checkpoint's chat template is used; thinking, system and tools fill it",
        "the checkpoint's chat template is used; --thinking and --system fill it",
    ),
    Habit(
        "ignore_chat_template input_embeddings input_ids",
        "give token ids as the prompt: they go to the model unchanged",
        "in Python, token ids as the prompt go to the model unchanged",
    ),
    Habit(
        "prefill_response",
        "use draft=, a text to begin with, or fill, for a text with holes",
        "in Python, draft= of generate begins with a text, and fill completes one with holes",
    ),
    Habit(
        "response_format json_schema",
        "use schema",
        "use mlx_dg generate --schema FILE",
    ),
    Habit(
        "num_return_sequences best_of",
        "use n",
        "use mlx_dg generate -n, or /n in a chat",
    ),
    Habit("callback prompt_progress_callback", "use on_step, a function that gets each step", ""),
    Habit("completion_batch_size prefill_batch_size", "use batch_size of generate_batch", ""),
    Habit("return_token_ids", "each generation has .token_ids; leave it out", ""),
    Habit("return_logprobs", "use trace=True; each generation then has .trace", ""),
    Habit("return_prompt_caches", "use generate with prompt_cache=PromptCache(model)", ""),
    Habit("chat", "", "use mlx_dg chat"),
    Habit("gen_kwargs", "", "each setting has an option of its own, or a keyword of generate in Python"),
    Habit(
        "revision force_download",
        "download it first, and give load the directory",
        "download it first (hf download ID --revision NAME), and give the directory as --model",
    ),
    Habit("pipeline", "", "it runs on one machine; leave it out"),
)

_CONVERT = (
    Habit("hf_path model", "", "the checkpoint is an argument: mlx_dg convert ID_OR_DIR --mlx-path OUT"),
    Habit(
        "quantize q",
        "every recipe but bf16 quantizes; leave it out, or use recipe",
        "every recipe but bf16 quantizes; leave it out, or use --recipe",
    ),
    _both("dequantize d", "convert the original checkpoint with the recipe bf16"),
    Habit("quant_predicate", "use recipe or overrides", "use --recipe or --set"),
    _both("quant_method calibration calibration_data", "nothing is calibrated; leave it out"),
    _both("mtp mtp_output", "the model has no such part; leave it out"),
    Habit("bits", "use q_bits", "use --q-bits"),
    Habit("group_size", "use q_group_size", "use --q-group-size"),
    Habit("output o outfile save_path", "use mlx_path", "use --mlx-path"),
    _both("trust_remote_code", _NO_CODE),
)


def _each(table: Mapping[str, str]) -> dict[str, str]:
    """Map each name to its text. Keys of `table` may be several names."""
    return {name: text for names, text in table.items() for name in names.split() if text}


SETTINGS = _each({habit.names: habit.python for habit in _GENERATE})
GENERATE_OPTIONS = _each({habit.names: habit.command for habit in _GENERATE})
CONVERT_KEYWORDS = _each({habit.names: habit.python for habit in _CONVERT})
CONVERT_OPTIONS = _each({habit.names: habit.command for habit in _CONVERT})
INFO_OPTIONS = _each({"model hf_path": "the model is an argument: mlx_dg info ID_OR_DIR"})

LOAD_KEYWORDS = _each(
    {
        "adapter_path": _NO_ADAPTERS,
        "trust_remote_code": _NO_CODE,
        "lazy strict": "weights are always checked and read; leave it out",
        "return_config": "the model has it: model.config",
        "tokenizer_config model_config": "edit a copy of the model directory's files instead",
        "revision force_download": "download it first (hf download ID --revision NAME); load the directory",
        "torch_dtype": "use dtype, one of MLX's",
        "device device_map": "use mx.set_default_device",
    }
)

# Names in other packages' modules.
ATTRIBUTES = _each(
    {
        "stream_generate": "generate gives a stream: iterate it for its blocks",
        "batch_generate BatchGenerator": "use generate_batch",
        "generate_step": "generate(..., on_step=function) calls a function after each step",
        "make_sampler": "use t_max, t_min and entropy_bound of generate, or sampler=EntropyBound(0.1)",
        "make_logits_processors": "use schema=, regex=, grammar= or choices= of generate",
        "make_prompt_cache PromptCacheState": "use PromptCache(model)",
        "save_prompt_cache load_prompt_cache": "a PromptCache lives in memory only",
        "apply_chat_template": "give generate the messages: it renders the checkpoint's template",
        "load_model load_config load_tokenizer": "use load",
        "quantize_model save_model dequantize_model quantize": "use convert",
        "load_adapters": _NO_ADAPTERS,
        "GenerationResponse GenerationResult BatchResponse": "use Generation and its Block objects",
        "Chat chat": "it is mlx_diffusiongemma.chat.Chat",
        "process_image prepare_inputs load_image": _TEXT_ONLY,
    }
)

# Commands of other programs.
COMMANDS = _each(
    {
        "run complete": "use mlx_dg generate",
        "benchmark": "use mlx_dg bench",
        "evaluate perplexity": "use mlx_dg eval",
        "awq dwq dynamic_quant gptq quantize": "use mlx_dg convert --recipe NAME",
        "upload share": "use mlx_dg convert SRC --upload-repo ID",
        "cache_prompt": "mlx_dg chat keeps what it has encoded",
        "manage": "use hf cache, the command of huggingface_hub",
        "server serve": "there is no server; mlx_dg chat holds a conversation",
        "lora fuse train": "there is no fine-tuning here",
    }
)


def advice(name: str, habits: Mapping[str, str], known: Mapping[str, str]) -> str | None:
    """Return what to use instead of the unknown `name`, or None.

    habits: names elsewhere -> the advice. known: names that exist here -> their spelling.
    """
    if name in habits:
        return habits[name]
    for close in get_close_matches(name, [*known, *habits], n=1, cutoff=CLOSE):
        return f"did you mean {known[close]}?" if close in known else habits[close]
    return None


def unknown_setting(name: str, settings: Sequence[str]) -> InputError:
    """Return the error for a keyword of `generate` that does not exist."""
    if name in KEYWORDS:
        return InputError(f"{name!r} is not a setting; it is a keyword of generate or generate_batch")
    known = {each: each for each in (*settings, *KEYWORDS)}
    instead = advice(name, SETTINGS, known) or f"known settings are {', '.join(settings)}"
    return InputError(f"unknown setting {name!r}; {instead}")


def part_habit(name: str, value: object) -> str:
    """Return advice for a value that other programs take for the same keyword, otherwise an empty string."""
    if name == "sampler" and callable(value) and not isinstance(value, type):
        return "; t_max and t_min set a temperature"
    if name == "stop" and isinstance(value, str):
        return "; eos_token_id takes the ids that end the answer"
    return ""


def led_on(habits: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that a keyword it does not have is an `InputError` that says what to use."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = {name: name for name in signature(function).parameters}

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in known:
                    instead = advice(name, habits, known) or f"it has {', '.join(known)}"
                    raise InputError(f"{function.__name__} has no keyword {name!r}; {instead}")
            return function(*args, **kwargs)

        return checked

    return decorate


def is_import(frame: FrameType) -> bool:
    """Return True if `frame` is about to bind a name of `from module import name`."""
    return opname[frame.f_code.co_code[frame.f_lasti]] == "IMPORT_FROM"
