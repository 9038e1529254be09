"""DiffusionGemma with MLX: load a checkpoint, denoise text canvas by canvas, and read thought and answer.

    import mlx_dg

    model, tokenizer = mlx_dg.load("demo")
    for block in mlx_dg.generate(model, tokenizer, "Why is the sky blue?", thinking=True, seed=0):
        print(block.thought, block.answer)

Importing this package is fast. Each name below is imported from its module on first use, so MLX and
transformers are loaded only when something needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlx_diffusiongemma.errors import (
    CheckpointError,
    ConfigError,
    DiffusionGemmaError,
    GenerationError,
    InputError,
    TokenizerError,
)

if TYPE_CHECKING:
    from mlx_diffusiongemma.answer import Block
    from mlx_diffusiongemma.checkpoint.loading import load
    from mlx_diffusiongemma.config.generation import GenerationConfig
    from mlx_diffusiongemma.config.model import ModelConfig
    from mlx_diffusiongemma.converter import convert
    from mlx_diffusiongemma.display.plots import plot_trace
    from mlx_diffusiongemma.engine.prompt_cache import PromptCache
    from mlx_diffusiongemma.engine.samplers import (
        ConfidenceThreshold,
        ConstantSchedule,
        CosineSchedule,
        EntropyBound,
        LinearSchedule,
        StableAndConfident,
        Stalled,
    )
    from mlx_diffusiongemma.engine.settings import Settings
    from mlx_diffusiongemma.engine.state import Step
    from mlx_diffusiongemma.engine.stats import Stats
    from mlx_diffusiongemma.engine.trace import Trace
    from mlx_diffusiongemma.evaluation.run import evaluate
    from mlx_diffusiongemma.filling.fill import Filling, fill
    from mlx_diffusiongemma.generation import generate, generate_batch
    from mlx_diffusiongemma.model import DiffusionGemma
    from mlx_diffusiongemma.prompt import Prompt
    from mlx_diffusiongemma.result import Generation
    from mlx_diffusiongemma.text.channels import ToolCall
    from mlx_diffusiongemma.text.prompts import tool_messages
    from mlx_diffusiongemma.text.tokenizer import Tokenizer

    __version__: str

__all__ = [
    "Block",
    "CheckpointError",
    "ConfidenceThreshold",
    "ConfigError",
    "ConstantSchedule",
    "CosineSchedule",
    "DiffusionGemma",
    "DiffusionGemmaError",
    "EntropyBound",
    "Filling",
    "Generation",
    "GenerationConfig",
    "GenerationError",
    "InputError",
    "LinearSchedule",
    "ModelConfig",
    "Prompt",
    "PromptCache",
    "Settings",
    "StableAndConfident",
    "Stalled",
    "Stats",
    "Step",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "Trace",
    "__version__",
    "convert",
    "evaluate",
    "fill",
    "generate",
    "generate_batch",
    "load",
    "plot_trace",
    "tool_messages",
]

_MODULE_OF = {
    "Block": "answer",
    "ConfidenceThreshold": "engine.samplers",
    "ConstantSchedule": "engine.samplers",
    "CosineSchedule": "engine.samplers",
    "DiffusionGemma": "model",
    "EntropyBound": "engine.samplers",
    "Filling": "filling.fill",
    "Generation": "result",
    "GenerationConfig": "config.generation",
    "LinearSchedule": "engine.samplers",
    "ModelConfig": "config.model",
    "Prompt": "prompt",
    "PromptCache": "engine.prompt_cache",
    "StableAndConfident": "engine.samplers",
    "Stalled": "engine.samplers",
    "Stats": "engine.stats",
    "Settings": "engine.settings",
    "Step": "engine.state",
    "Tokenizer": "text.tokenizer",
    "ToolCall": "text.channels",
    "Trace": "engine.trace",
    "convert": "converter",
    "evaluate": "evaluation.run",
    "fill": "filling.fill",
    "generate": "generation",
    "generate_batch": "generation",
    "load": "checkpoint.loading",
    "plot_trace": "display.plots",
    "tool_messages": "text.prompts",
}


def _missing(name: str) -> Exception:
    """Return the error for `name`, which this package does not have. Its message proposes a known name.

    A name of mlx-lm gets an `ImportError`, because an import statement hides the text of an `AttributeError`.
    """
    from .habits import ATTRIBUTES, advice

    text = f"module 'mlx_diffusiongemma' has no attribute {name!r}"
    if name in ATTRIBUTES:
        return ImportError(f"{text}; {ATTRIBUTES[name]}")
    instead = None if name.startswith("_") else advice(name, {}, {each: each for each in __all__})
    return AttributeError(f"{text}; {instead}" if instead else text)


if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            value = version("mlx-diffusiongemma")
        elif name in _MODULE_OF:
            value = getattr(import_module(f"mlx_diffusiongemma.{_MODULE_OF[name]}"), name)
        elif name in __all__:  # an error class: `mlx_dg` imports only `__getattr__` from here
            value = globals()[name]
        else:
            raise _missing(name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
