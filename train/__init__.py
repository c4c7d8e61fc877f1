"""From tables to a trained and evaluated model."""
