"""Loads a model and its tokenizer from a directory or a hub id."""
