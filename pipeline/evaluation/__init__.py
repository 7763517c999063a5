"""How good a model is, when to stop, and what learning curves of replays show."""
