"""What becomes of adapters: put into the model that they were trained beside, or saved alone."""
