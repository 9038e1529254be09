"""Tables, progress bars and one-line messages for terminals."""
