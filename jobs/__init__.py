"""Commands of the three programs: each parses, calls one function and prints one summary."""
