"""The bundled regression set: short prompts whose answers a program can check, offline; no torch."""
