"""Reduced precision: int8 and fp16 files derived from verified fp32 ones, and offered only if they pass a gate."""
