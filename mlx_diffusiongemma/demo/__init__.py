"""The bundled demo checkpoint, its synthetic tasks and the scripts that trained and measure it."""
