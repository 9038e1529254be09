"""Graders: functions from a reply to its grade, and functions that make them."""
