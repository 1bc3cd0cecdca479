"""The physical limits, as bare code: what could be reached if there were no library."""
