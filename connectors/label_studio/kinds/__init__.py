"""Kinds of regions in Label Studio: a page, a guess, an answer, written once for each kind."""
