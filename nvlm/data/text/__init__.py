"""A sample's tokens: the tokenizer, tile tags, and the layout of text and placeholders.

From outside: `encode.SampleEncoder` lays out a sample, with a `chat.ChatTokenizer` and what
`nvlm.sizes.visual.VisualLayout` says of its images.
"""
