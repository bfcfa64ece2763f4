"""The networks, as thin Linen modules: the ViT and its projection heads."""
