"""Progress bars on stderr. They are hidden if stderr is a file or a pipe."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def bar(description: str, **settings: Any) -> Any:
    """Return a `tqdm` bar with these settings."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(desc=description, disable=not watched, file=sys.stderr, **settings)
