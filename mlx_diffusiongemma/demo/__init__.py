"""The bundled demo checkpoint, its synthetic tasks, and the training that made it."""
