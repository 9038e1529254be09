"""Every error this package raises on purpose.

A message is one line that names the thing, what was found and the way out. `exit_code` is what the
command line returns: 2 for bad input, 1 for a failure while working.
"""


class DiffusionGemmaError(Exception):
    """Base class of all errors raised on purpose by this package."""

    exit_code = 1


class InputError(DiffusionGemmaError, ValueError):
    """Something the caller gave cannot be used: a prompt, a setting, a path."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration file is missing, unreadable, or lacks or contradicts a value."""


class CheckpointError(InputError):
    """Weights are missing, truncated, misnamed or misshapen."""


class TokenizerError(InputError):
    """The tokenizer or its chat template is missing or unusable."""


class EndpointError(DiffusionGemmaError):
    """A server that is to answer prompts cannot be reached, refuses, or answers something else."""


class GenerationError(DiffusionGemmaError):
    """The model produced something that cannot become text, such as NaN logits."""
