"""What every benchmark shares: figures, interleaved rounds, child processes, places for data, facts of the machine."""
