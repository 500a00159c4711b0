"""From a trained run to verified files."""
