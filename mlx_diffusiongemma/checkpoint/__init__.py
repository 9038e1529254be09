"""A directory or a hub id -> a model and its tokenizer."""
