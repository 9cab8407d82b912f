"""Where samples lie: sources and their splits, tars and Energon folders, read by byte range.

From outside: `sources.Source` and what finds them, `shard.ShardReader` reads byte ranges,
`regular_files.read_regular_file` reads whole files that others name.
"""
