"""Speed and memory against peers, measured in the same run on the same machine. `make bench` runs all of it."""
