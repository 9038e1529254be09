"""Conversations."""

from .chat import Chat, ChatSettings

__all__ = ["Chat", "ChatSettings"]
