"""`mlx_dg doctor`: checks if this machine runs the package correctly, and prints a report to share.

examination.py runs the checks, each of which has a file in this directory and writes to a `Sheet`.
"""
