"""A stay from the request to the host's payout: weeks of waiting, and a guest who may cancel at any time."""
