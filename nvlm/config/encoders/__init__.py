"""What reads tiles: `model.vision`."""
