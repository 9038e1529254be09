"""The files config.json and generation_config.json, and the released model's shapes."""
