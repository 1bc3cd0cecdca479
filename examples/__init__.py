"""Applications written with skald."""
