"""Flows that show the package at work, on real documents."""
