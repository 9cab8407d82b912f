"""From the encoder's features to the decoder's tokens, one file each."""
