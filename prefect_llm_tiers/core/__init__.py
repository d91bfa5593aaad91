"""Values and rules without I/O; every other room may import this one and it imports none of them."""
