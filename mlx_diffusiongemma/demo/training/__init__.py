"""Training of the demo checkpoint, in torch. It is part of the repository, but not of installed packages."""
