"""From products to a trained run."""
