"""Training of TAPv2-Chat: captions first, then questions and answers (TAP-v2 paper, 3.2 and 4)."""
