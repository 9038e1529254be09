"""Graders, which are functions from a reply to its grade, and functions that make graders."""
