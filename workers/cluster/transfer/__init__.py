"""Files of a run to and from nodes that do not see its folder."""
