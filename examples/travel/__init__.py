"""A trip: flight and hotel are reserved at once, then it is charged; what was done is undone when something fails."""
