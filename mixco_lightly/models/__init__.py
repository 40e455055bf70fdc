"""What is trained: backbones and Lightning modules."""
