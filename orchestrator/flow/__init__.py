"""Tasks and the one scheduler that runs them; the search for poison items, waits, stops and silence."""
