"""How much each layer matters: criteria as rows, racing, choice."""
