"""What a backbone has learned, looked at from inside: how alike two are, how many directions are used, collapse."""
