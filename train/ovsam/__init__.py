"""Training of Open-Vocabulary SAM: distillation, then the head that names regions."""
