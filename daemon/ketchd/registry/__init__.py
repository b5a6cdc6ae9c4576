"""The distribution protocol: where to ask, as whom, how often; what is sent and what may come back."""
