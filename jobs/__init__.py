"""Commands: parse, wire, print one summary."""
