"""What is fed: mixtures, collate function, datasets and transforms."""
