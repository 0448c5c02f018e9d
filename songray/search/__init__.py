"""From vectors to ranked tracks."""
