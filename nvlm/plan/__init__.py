"""What a run will need and how long it will take, reckoned from its configuration. No torch.

hardware.py       cards and what joins them, as their makers state them
assumptions.py    every number that is not arithmetic: value, source, override
work.py           what a sequence holds: tiles, documents
memory.py         bytes of a rank by pipeline stage, at a step and at a checkpoint; fits.py decides
seconds.py        operations of a layer, the encoder, the output layer
communication.py  messages between ranks
schedule.py       the order of forward and backward passes, simulated
estimate.py       all of it together: the plan
search.py         other layouts, ranked
"""
