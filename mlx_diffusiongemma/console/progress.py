"""Progress bars on stderr, for people: none where stderr is a file or a pipe."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def bar(description: str, **settings: Any) -> Any:
    """A `tqdm` bar, with its settings."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(desc=description, disable=not watched, file=sys.stderr, **settings)
