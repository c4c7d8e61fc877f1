"""Open-Vocabulary SAM: a frozen convolutional CLIP that segments and names what is pointed at."""
