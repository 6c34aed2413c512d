"""Judges: models behind OpenAI-compatible endpoints that say which of two answers is better; no torch."""
