"""The TAP model and the maths it owns."""
