"""An adapter as named tensors, as one vector, and as bytes."""
