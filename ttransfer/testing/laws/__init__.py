"""The laws, each a small free function whose docstring says it and what breaks it."""
