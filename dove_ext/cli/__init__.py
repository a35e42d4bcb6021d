"""The `dove` command."""
