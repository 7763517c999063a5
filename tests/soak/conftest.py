"""Trials are no tests, and load what tests must not load early."""

collect_ignore = ["checks.py", "growth.py", "kills.py", "measured.py", "people.py", "trial.py"]
