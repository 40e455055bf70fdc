"""What runs say together: planned comparisons over seeds, and their statistics."""
