"""Conversion between text, messages and tools on one side and token ids on the other."""
