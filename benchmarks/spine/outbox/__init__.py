"""The peer: an outbox as it is written by hand, one commit per message at the sender, read by polling."""
