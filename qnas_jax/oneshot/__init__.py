"""One-shot search: one supernet, whose subnets are scored whole and found by evolution."""
