"""Who trains members and scores the pool: this process, or workers of Ray side by side."""
