"""Backtesting: nights of given luck, carried out by the planner's own decisions. Pure, as planning is."""
