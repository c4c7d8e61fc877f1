"""Conversation files (LLaVA's json and its kin) become tables that the trainer of chat streams."""
