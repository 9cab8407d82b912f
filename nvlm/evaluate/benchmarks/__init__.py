"""Published benchmarks: how each is read, asked and scored. One file each; `table.py` lists them."""
