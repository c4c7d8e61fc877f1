"""Data sets the engine can read: each hands out units of work and images with their regions."""
