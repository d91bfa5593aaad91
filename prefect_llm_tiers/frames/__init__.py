"""Rows into requests, outcomes into columns; the only room that knows polars."""
