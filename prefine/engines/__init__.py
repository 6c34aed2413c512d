"""Other servers of models, vLLM and llama.cpp, as processes that prefine starts, watches and stops."""
