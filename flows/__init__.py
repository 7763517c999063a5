"""Order, retries, schedule and the command: the only package that knows Prefect."""
