"""Access over HTTP: roles by tokens, the rate of calls, and the members that a role may see."""
