"""Which samples, and when: a pure function of (seed, position), from the index alone.

From outside: `planner.Planner` gives the packs of each step and the position, `draws` what a pack
is, `lengths.PlannedSource` plans single draws.
"""
