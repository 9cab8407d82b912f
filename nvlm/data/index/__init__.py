"""All samples of a source measured once: byte ranges, image sizes, token counts as mapped files.

From outside: `source_index.open_indexes` opens or builds them, `reading.read_shard` reads samples
as they do, `stored.decode_images` gives their pixels.
"""
