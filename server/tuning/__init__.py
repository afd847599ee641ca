"""Finding a stage's learning rate and batch size at the sites, when the stage begins."""
