"""Models: backbones, heads, and how any of them becomes a Classifier."""
