"""Evaluations in the formats of other programs, both ways."""
