"""Views of a generation. They consume blocks and steps and know no model."""
