"""Object stores: one small async protocol, and what wraps it."""
