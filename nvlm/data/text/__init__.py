"""A sample's tokens: the tokenizer, tile tags, and the layout of text and placeholders.

From outside: `encode.SampleEncoder` lays out a sample, `chat.ChatTokenizer` and
`tile_tags.TagStyle` are what it is made of.
"""
