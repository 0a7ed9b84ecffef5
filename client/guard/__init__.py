"""What says no, and what may leave: policy, contract, budget, release, scrubbing."""
