"""From a prefix to committed ids: token ids and arrays only, no text."""
