"""Coverage-guided fuzzing of every parser, in both roles: see ``__main__.py``."""
