"""Joins channels to local ends."""
