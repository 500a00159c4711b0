"""A tritonserver of one's own: started, watched, stopped."""
