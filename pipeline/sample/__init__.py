"""A drawn world with exact truth, its small CLIP teacher, and the data of both."""
