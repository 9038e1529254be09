"""Conversations with a model, which can be saved and loaded."""

from .chat import Chat, ChatSettings

__all__ = ["Chat", "ChatSettings"]
