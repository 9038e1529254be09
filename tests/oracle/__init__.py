"""The parity oracle: tiny checkpoints, reference traces, and what replays them.

`tiny` builds small random checkpoints in Hugging Face format (NumPy only), `traces` reads and writes the
committed traces in `data/`, and `replay` drives our engine from them; none of the three needs torch.
`reference` drives Transformers, and `export_traces` is the command that writes `data/`.
"""
