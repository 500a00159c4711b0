"""Comparisons with other ways to serve, made to be repeated: ``python -m comparisons --help``."""
