"""What encoders make of products: read once, encoded in batches, kept."""
