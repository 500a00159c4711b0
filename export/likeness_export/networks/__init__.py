"""The networks after the encoders: towers, fusion, learned metric, and the product network that joins them."""
