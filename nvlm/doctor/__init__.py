"""`nvlm doctor`: what a run needs of its machine, places and processes."""
