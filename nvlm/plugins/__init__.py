"""nvlm inside programs of others, which find it by its entry points.

lmms_eval          the model `nvlm` of lmms-eval: a checkpoint at any layout
lmms_eval_entry    what its entry point names
asked_by_all       questions that every process has, answered by replicas
"""
