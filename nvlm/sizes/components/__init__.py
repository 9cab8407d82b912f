"""The parameters of each component of the model, a file each. `sizes/parameters.py` joins them."""
