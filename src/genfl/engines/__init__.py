"""How rounds of a federated algorithm are executed."""
