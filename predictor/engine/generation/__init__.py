"""Generation: sequences that grow a token at a time, batched at every step."""
