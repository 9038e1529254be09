"""Templates with holes."""
