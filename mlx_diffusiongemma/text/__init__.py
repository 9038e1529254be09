"""Text, messages and tools to token ids, and back."""
