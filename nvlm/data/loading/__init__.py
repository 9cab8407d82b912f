"""The planned micro-batches read, decoded, encoded and collated by worker processes."""
