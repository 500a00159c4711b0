"""Products of which each has other modalities: three ways to serve them on one Triton."""
