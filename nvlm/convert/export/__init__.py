"""What an exported folder holds beside its rules: shards, configuration, tokenizer, model card."""
