"""Compares this package with Transformers, by traces of what Transformers computes for small checkpoints.

`tiny` builds small random checkpoints in Hugging Face format, `traces` reads and writes the committed traces
in `data/`, and `replay` runs this package's engine on the inputs of a trace. These three do not need torch.
`reference` runs Transformers, and `export_traces` is the command that writes `data/`.
"""
