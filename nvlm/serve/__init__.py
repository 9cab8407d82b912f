"""`nvlm serve`: an OpenAI-compatible server around one engine, and a page to talk to it.

A request's way: `gate.py` (who may ask), `service.py` (limits, the body, the answer), in a worker
thread `chat_request.py` and `pictures.py` (what is asked), then `answer_loop.py`, which alone
touches the session of `nvlm.generate`, on the main thread.
"""
