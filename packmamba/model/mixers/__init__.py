"""What mixes a layer's tokens or channels: one file a kind."""
