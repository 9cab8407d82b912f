"""Published benchmarks: how each is read, asked and scored; `table.py` lists them."""
