"""`mlx_dg doctor`: whether this machine runs the package as it should, told so that it can be pasted.

examination.py runs the checks, one a file beside it, each of which writes on a `Sheet`.
"""
