"""What the embeddings of a catalogue are used for: related products, clusters, duplicates, missing attributes."""
