"""Hooks of Triton's cache, one module a mechanism."""
