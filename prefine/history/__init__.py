"""Runs of the past: compared, tagged, removed and made again."""
