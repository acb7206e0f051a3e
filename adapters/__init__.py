"""The model: pixels in, probabilities out; no network, no threads, no SQL."""
