"""`mlx_dg doctor`: checks whether this machine runs the package as it should, for people to paste.

examination.py runs the checks, one a file beside it. Each writes on a `Sheet`.
"""
