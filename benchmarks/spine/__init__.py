"""What the foundation must reach: append, deliver, read, latency, backlog, memory, idle; on both stores."""
