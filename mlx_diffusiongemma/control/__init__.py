"""Constraints on canvases: pins, thinking budget, guards, drafts and grammars."""
