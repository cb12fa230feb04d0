"""The local stack of `make run` and of the tests: an SQS server, a real mongod, a worker, Flower.

For this machine only. It is not in the wheel, and nothing in `app` imports it.
"""
