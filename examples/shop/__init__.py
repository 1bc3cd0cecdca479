"""The shop: one order travels through six services that know each other only by their messages."""
