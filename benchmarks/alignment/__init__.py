"""Does training with prefine align models? The experiments behind docs/results.md; `make results` runs them."""
