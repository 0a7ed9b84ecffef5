"""What trains on encoded text: per-example gradients, the private step, noisy sums."""
