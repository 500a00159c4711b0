"""The networks after the encoders: fusion and the learned metric."""
