"""Generation: sequences that grow by a token in each step, batched anew at every step."""
