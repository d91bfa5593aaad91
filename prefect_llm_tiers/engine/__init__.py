"""Carries a plan out: restartable, with all that waits written down in the ledger."""
