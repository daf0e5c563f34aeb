"""The shells: portal (sockets), member (the only place that wires everything), environment."""
