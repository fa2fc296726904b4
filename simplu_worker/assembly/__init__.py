"""Put the parts of a worker together as the settings describe; commands open those that they need, and import no more.

Opening a part makes no request yet. Each is an async context manager, which closes it.
"""
