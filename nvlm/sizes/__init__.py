"""Facts of the model that follow from its configuration: parameters, FLOPs, stages. No torch."""
