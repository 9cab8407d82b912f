"""`nvlm report`: what runs did, as one page: curves, time, samples, answers, events."""
