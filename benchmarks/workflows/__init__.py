"""Workflows per second beside a bare journal with group commit, what a step costs, how soon a crash is mended."""
