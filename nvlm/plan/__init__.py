"""What a run will need and how long it will take, reckoned from its configuration. No torch.

hardware.py: cards and what joins them, as their makers state them. assumptions.py: every number
that is not arithmetic, with its source. work.py: what a sequence holds. operations.py, bytes
(activations.py, stage_bytes.py; refuse.py decides) and seconds (seconds.py, parts.py,
communication.py) of the model's parts; schedule.py simulates the pipeline, chunks.py and losses.py
say what each stage takes and where the time goes; layout.py cuts the stages by that, estimate.py
makes the plan, search.py ranks other layouts.
"""
