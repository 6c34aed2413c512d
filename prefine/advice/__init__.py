"""Advice before training starts: which method fits the data, with reasons, and a pipeline to begin with."""
