"""Pure decisions: no clock, no I/O, no Prefect; the same input gives the same plan in every process."""
