"""The limits of SQS, each with its source. No other file defines one.

Quotas: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
"""

#: Most messages that one receive call returns, and most entries of one batch call.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
BATCH = 10

#: Most attributes of one message.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
MOST_ATTRIBUTES = 10

#: Most bytes of a message with its attributes, and of all messages of one batch call together.
MOST_BYTES = 1_048_576

#: Most messages of a queue in flight: received, and neither deleted nor visible again.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html
MOST_IN_FLIGHT = 120_000

#: Longest delay of a new message, in seconds.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-delay-queues.html
LONGEST_DELAY = 900

#: Longest time that SQS hides a received message, with all extensions: 12 hours, in seconds.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
LONGEST_VISIBILITY = 43_200

#: Longest long poll, in seconds.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-short-and-long-polling.html
LONGEST_POLL = 20

#: Longest time that SQS keeps a message: 14 days, in seconds.
LONGEST_RETENTION = 14 * 86_400
