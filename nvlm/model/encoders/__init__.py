"""Vision encoders, one file each."""
