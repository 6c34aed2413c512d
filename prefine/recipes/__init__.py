"""The recipes and pipelines that come with prefine, and the reward function that one of them uses."""
