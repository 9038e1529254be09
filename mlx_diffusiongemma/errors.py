"""Every error that this package raises on purpose.

A message is one line. It names the thing at fault, what was found, and a way to correct it. `exit_code` is
the exit status of the command line: 2 for bad input, 1 for a failure during the work.
"""

_MOST = 4000  # characters of a message


class DiffusionGemmaError(Exception):
    """Base class of all errors raised on purpose by this package.

    `str()` escapes characters that are not printable, because a message may quote a file or a server.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        text = text if len(text) <= _MOST else f"{text[:_MOST]}..."
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class InputError(DiffusionGemmaError, ValueError):
    """A prompt, setting, path or other input from the caller cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration file is missing or unreadable, or lacks a value, or has contradictory values."""


class CheckpointError(InputError):
    """Weights are missing, truncated, misnamed or misshapen."""


class TokenizerError(InputError):
    """The tokenizer or its chat template is missing or unusable."""


class EndpointError(DiffusionGemmaError):
    """An endpoint cannot be reached, refuses a request, or sends an unexpected response."""


class GenerationError(DiffusionGemmaError):
    """A generation cannot continue or give its result, for example because logits are NaN."""
