"""Stubs of the package `tallyboard.v1`, made by scripts/generate; not to be edited."""
