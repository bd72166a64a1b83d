"""What can be set, how files become it, and how mistakes in it are said."""
