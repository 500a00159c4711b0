"""Triton's model repository: rendered, checked, replaced in one move; and the adapters that are copied into it."""
