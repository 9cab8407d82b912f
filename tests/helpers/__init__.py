"""What tests share: small models, folders and shards, and real jobs to start."""
