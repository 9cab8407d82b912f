"""What a sample says: its members' text as conversations or documents of one of the kinds.

From outside: `kinds.SampleParser` parses, `conversations.keep_turns` cuts, `sample.SampleError`
says what is wrong; `prompts.load_prompt_pools` and `image_formats.IMAGE_TYPES` are the tables.
"""
