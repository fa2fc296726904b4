"""The destinations of the feed: streams of Kinesis, FIFO queues of SQS, webhooks, and notifications.

Each keeps the order of the events of a partition key by one rule (`key_order.py`): an event is sent only once those of
its key before it were delivered. Kinesis and SQS may take some entries of a request and refuse others, so a request has
each key once, and a round of requests ends before the next one begins. Webhooks get an event a request, in lanes.
"""
