"""How a forward pass is laid out and which executor runs it."""
