"""Three teams order, deliver and receive goods; only events join them."""
