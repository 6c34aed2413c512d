"""Two models compared on the same prompts: measures of answers, statistics, verdict and gate; no torch."""
