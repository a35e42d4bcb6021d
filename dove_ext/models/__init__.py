"""The models: VQGAN, the transformer stacks, and DOVE around them."""
