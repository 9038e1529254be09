"""Text for terminals that is not a view: tables, progress bars, messages of one line."""
