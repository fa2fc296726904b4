"""The HTTP server, the status page, and the views behind them."""
