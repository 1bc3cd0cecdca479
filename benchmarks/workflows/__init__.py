"""Workflows per second beside a bare journal with group commit, what a step costs, how soon a crash is mended; how soon
a workflow hears of what somebody wants of it, what sleeping ones cost, and whether a day of rides can be sustained."""
