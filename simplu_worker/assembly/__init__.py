"""Put the parts of a worker together as the settings describe them; commands open the same parts as the daemon.

Opening a part makes no request yet. Each is an async context manager, which closes it. A command opens the parts that
it needs, and imports no more: the access to shards needs neither botocore nor, without Citrus, a client of HTTP.
"""
