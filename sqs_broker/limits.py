"""The numbers that SQS sets, each with its source. No other file has one.

Quotas: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
"""

#: Messages that one receive call returns, and entries that one batch call takes.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
BATCH = 10

#: Attributes that one message takes.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
MOST_ATTRIBUTES = 10

#: Bytes of a message with its attributes, and of all messages of one batch call together.
MOST_BYTES = 1_048_576

#: Seconds that SQS can delay a new message.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-delay-queues.html
LONGEST_DELAY = 900

#: Seconds from the receive after which SQS ends a lease, however often it was extended: 12 hours.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
LONGEST_VISIBILITY = 43_200

#: Seconds of the longest long poll.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-short-and-long-polling.html
LONGEST_POLL = 20

#: Seconds that SQS keeps a message at most: 14 days.
LONGEST_RETENTION = 14 * 86_400
