"""Work on workers: shards through their stages, the search for poison items, waits, stops and silence."""
