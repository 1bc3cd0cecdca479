"""A new user: the address is verified, then letters follow until the user acts."""
