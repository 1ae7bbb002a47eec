"""What all operations share: the gate, places, contexts, layers."""
