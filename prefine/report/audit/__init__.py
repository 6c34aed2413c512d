"""The page of a data audit."""
