"""Speed and memory of the daemon, measured with real processes and real peers; never tests."""
