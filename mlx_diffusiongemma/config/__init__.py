"""The files config.json and generation_config.json, and the shapes that were released."""
