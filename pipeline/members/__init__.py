"""The K outputs of an image: ensembles, dropout passes, Laplace draws, SWAG, views."""
