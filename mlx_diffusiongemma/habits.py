"""Common names of mlx-lm and other programs, and their equivalents here.

Error messages about unknown names use these tables, in Python and on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from .errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

_SAMPLED_WHOLE = "a canvas is sampled as a whole; the entropy bound decides how much a step accepts"
_ADAPTERS = "adapters are loaded with the model: mlx_dg.load(model, adapter_path=DIRECTORY) in Python"
_NO_CODE = "code from a checkpoint is never run; leave it out"

# Names in other programs -> (advice in Python, advice on the command line). "-" of an option is "_" here.
_GENERATE = {
    "max_tokens m max_length max_completion_tokens": ("use max_new_tokens", "use --max-new-tokens"),
    "prompt p messages": (
        "it is the third argument: text, chat messages or token ids",
        "the prompt is an argument, in quotes: mlx_dg generate 'Why is the sky blue?' (- for standard input)",
    ),
    "temp temperature": (
        "the temperature falls from t_max to t_min over the steps of a canvas; set these two",
        "the temperature falls over the steps of a canvas; in Python, t_max= and t_min= of generate set it",
    ),
    "top_p top_k min_p xtc_probability xtc_threshold repetition_penalty": (
        f"{_SAMPLED_WHOLE} (entropy_bound=)",
        f"{_SAMPLED_WHOLE} (mlx_dg generate --entropy-bound)",
    ),
    "logits_processors": ("use schema, regex, grammar or choices", ""),
    "system_prompt": ("use system", "use --system"),
    "verbose stream": (
        "nothing is printed; iterate the generation for its blocks, and print(generation.stats.table())",
        "the answer always appears block by block; mlx_dg generate --stats adds statistics",
    ),
    "enable_thinking": ("use thinking=True", "use --thinking"),
    "stop stop_words extra_eos_token": ("eos_token_id of generate takes ids that end an answer",) * 2,
    "max_kv_size kv_bits kv_group_size quantized_kv_start": (
        "the prefix cache is neither limited nor quantized; leave it out",
    )
    * 2,
    "prompt_cache_file": (
        "use prompt_cache=PromptCache(model)",
        "mlx_dg chat keeps encoded tokens by itself",
    ),
    "draft_model num_draft_tokens": ("draft models are not supported; leave it out",) * 2,
    "chat_template_config": ("the checkpoint's template is used; thinking and system fill it",) * 2,
    "response_format json_schema": ("use schema", "use mlx_dg generate --schema FILE"),
    "adapter_path": (_ADAPTERS,) * 2,
    "trust_remote_code": (_NO_CODE,) * 2,
}
_CONVERT = {
    "hf_path model": ("", "the checkpoint is an argument: mlx_dg convert ID_OR_DIR --mlx-path OUT"),
    "quantize q": ("every recipe but bf16 quantizes; leave it out",) * 2,
    "dequantize d": ("convert the original checkpoint with the recipe bf16",) * 2,
    "quant_predicate": ("use recipe or overrides", "use --recipe or --set"),
    "trust_remote_code": (_NO_CODE,) * 2,
}


def _each(table: Mapping[str, str]) -> dict[str, str]:
    return {name: text for names, text in table.items() for name in names.split() if text}


SETTINGS = _each({names: python for names, (python, _) in _GENERATE.items()})
GENERATE_OPTIONS = _each({names: command for names, (_, command) in _GENERATE.items()})
CONVERT_KEYWORDS = _each({names: python for names, (python, _) in _CONVERT.items()})
CONVERT_OPTIONS = _each({names: command for names, (_, command) in _CONVERT.items()})
INFO_OPTIONS = _each({"model hf_path": "the model is an argument: mlx_dg info ID_OR_DIR"})
LOAD_KEYWORDS = _each(
    {
        "trust_remote_code": _NO_CODE,
        "return_config": "the model has it: model.config",
        "revision": "download it first (hf download ID --revision NAME), and load the directory",
        "torch_dtype": "use dtype",
        "device device_map": "use mx.set_default_device",
    }
)
ATTRIBUTES = _each(
    {
        "stream_generate": "generate gives a stream: iterate it for its blocks",
        "batch_generate": "use generate_batch",
        "make_sampler": "use t_max, t_min and entropy_bound of generate, or sampler=EntropyBound(0.1)",
        "make_prompt_cache": "use PromptCache(model)",
    }
)
COMMANDS = _each(
    {
        "benchmark": "use mlx_dg bench",
        "evaluate perplexity": "use mlx_dg eval",
        "awq dwq dynamic_quant gptq quantize": "use mlx_dg convert --recipe NAME",
        "upload": "use mlx_dg convert SRC --upload-repo ID",
        "manage": "use hf cache, the command of huggingface_hub",
        "server": "mlx_dg has no server; use mlx_dg chat for a conversation",
        "lora fuse": "mlx_dg cannot fine-tune",
    }
)


def advice(name: str, habits: Mapping[str, str], known: Mapping[str, str]) -> str | None:
    """Return advice for the unknown `name`, or None.

    habits: names in other programs -> advice.
    known: names that exist here -> the spelling to propose.
    """
    if name in habits:
        return habits[name]
    for close in get_close_matches(name, [*known, *habits], n=1, cutoff=0.75):
        return f"did you mean {known[close]}?" if close in known else habits[close]
    return None


_keywords: dict[str, list[str]] = {}  # name of a function that takes settings -> its keywords


def takes_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Register a function that takes settings besides its own keywords, for errors of `unknown_setting`."""
    _keywords[function.__name__] = list(signature(function).parameters)
    return function


def unknown_setting(name: str, settings: Sequence[str]) -> InputError:
    """Return the error for `name`, passed as a setting but not one of `settings`."""
    having = sorted(function for function, names in _keywords.items() if name in names)
    if having:
        lacking = sorted(_keywords.keys() - having)
        no = f"; {' and '.join(lacking)} cannot take it" if lacking else ""
        return InputError(f"{name!r} is not a setting but a keyword of {' and '.join(having)}{no}")
    known = {each: each for each in (*settings, *_keywords.get("generate", ()))}
    instead = advice(name, SETTINGS, known) or f"known settings are {', '.join(settings)}"
    return InputError(f"unknown setting {name!r}; {instead}")


def led_on(habits: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that an unknown keyword raises `InputError` with advice. See `advice`."""

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
