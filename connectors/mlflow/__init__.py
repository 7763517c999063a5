"""MLflow: the only room that knows it, and what a registered model carries along."""
