"""A sample's tokens: the tokenizer, tile tags, and the layout of text and placeholders."""
