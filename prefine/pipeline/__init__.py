"""Pipelines: stages that follow each other, each run once for the same inputs, from one file."""
