"""Finding the order of a curriculum: policies try short federations, and the sites say what they came to."""
