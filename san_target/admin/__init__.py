"""HTTP API, web page and Prometheus metrics of a member."""
