"""What is left of a workflow without an engine: five records, and each step waits until the one before is durable."""
