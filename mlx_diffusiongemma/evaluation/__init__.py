"""`mlx_dg eval` and `mlx_dg.evaluate`: suites, graders, the sandbox for generated code, runners, tables."""
