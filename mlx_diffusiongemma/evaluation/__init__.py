"""What `mlx_dg eval` does: suites of prompts, graders, the sandbox for generated code, runners, tables."""
