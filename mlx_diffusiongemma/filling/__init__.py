"""Fill the holes of a template."""
