"""Training of the demo checkpoint, in torch. Only in the repository: an installed package leaves it out."""
