"""The engine: encodes prompts and denoises canvases. It handles token ids and arrays, but no text."""
