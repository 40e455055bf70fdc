"""What is minimised: contrastive losses and the queue of keys."""
