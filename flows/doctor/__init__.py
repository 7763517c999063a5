"""`labelcycle doctor`: what a campaign works with, part by part, and what to do about what is not well."""
