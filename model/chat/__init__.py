"""TAPv2-Chat: a language model that sees an image through TAP's encoder (TAP-v2 paper, 3.2)."""
