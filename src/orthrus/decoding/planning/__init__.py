"""Planning of the cycle `auto`: the cost model, the acceptance estimates, and the policy computed from both."""
