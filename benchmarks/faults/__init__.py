"""What the cache does when something goes wrong, at full size: each module is a command that checks."""
