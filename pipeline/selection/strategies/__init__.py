"""Query strategies: a row for each, and the functions that ask."""
