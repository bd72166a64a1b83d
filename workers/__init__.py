"""Workers: what runs inside an actor. They sample, verify, judge and train, and know no rounds."""
