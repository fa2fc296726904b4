"""The part that the local Kinesis and the local SQS share: HTTP, errors, faults, the control path and the clock."""
