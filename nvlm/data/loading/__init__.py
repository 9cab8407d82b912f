"""The planned micro-batches read, decoded, encoded and collated by worker processes.

From outside: `training_data.open_training_data` opens a run's data where it stands and gives the
steps of a rank; `reader.MicroBatchReader` reads what `loader.sample_request` asks for.
"""
