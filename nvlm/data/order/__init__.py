"""Which samples, and when: a pure function of (seed, position), from the index alone."""
