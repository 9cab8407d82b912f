"""The planned micro-batches read, decoded, encoded and collated by worker processes.

From outside: `loader.build_loader` gives the steps of a rank, `reader.MicroBatchReader` reads what
`loader.sample_request` asks for.
"""
