"""Scores of answers to questions about images, by the rules of each benchmark's own script."""
