"""What encoders, connectors and decoders are built of."""
