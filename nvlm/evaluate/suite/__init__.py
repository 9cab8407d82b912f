"""Published benchmarks put to a checkpoint: read, asked, answered, scored, compared."""
