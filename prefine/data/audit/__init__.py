"""Is this data worth training on? Checks of whole files, without torch."""
