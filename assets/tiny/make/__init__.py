"""What made the files of assets/tiny; nothing else uses it."""
