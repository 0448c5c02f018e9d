"""Where songs come from."""
