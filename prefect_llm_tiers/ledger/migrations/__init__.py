"""How a ledger's schema came to be, one revision after the other, from the first table on."""
