"""What leaves robench for others, and comes back: bundles, RobustBench's and Hugging Face's formats, tensors of images."""
