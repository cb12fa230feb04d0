"""The Lambda function: `app.lambda_handler.handler` runs the tasks behind an SQS trigger.

Lambda imports this module while it starts a sandbox, so that is when the clients are opened. In any
other process the import opens nothing. docs/lambda.md describes the function.
"""

from time import time

import pymongo

from app.celery import app
from app.errors import SettingsError
from app.function_secrets import read_mongo_uri
from app.logs import log_to_stdout
from app.models import connect, disconnect
from app.mongo import address_of, control_options
from app.outcomes.observer import observer
from app.probe import Probe
from app.schema import find_faults, make_indexes, require_replica_set
from app.settings import get_settings, is_function, use_mongo_uri
from sqs_broker.control.attempts import MongoAttempts
from sqs_broker.control.store import Store
from sqs_broker.function import Function
from sqs_broker.options import ControlOptions

#: Seconds for all calls to MongoDB at the start of a sandbox. Lambda allows 10 s for the start:
#: https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html
OPEN_TIMEOUT = 2.5

#: Seconds to wait for the writing of outcomes at the end of an invocation.
FLUSH_TIMEOUT = 1.0

#: Seconds after an outage in which a run may still use a dead connection (app/outage.py).
DEAD_CONNECTIONS = 15

#: How the probe reports that MongoDB refuses the user and password: MongoDB's code, and Atlas'.
REFUSED_LOGINS = ("OperationFailure(18)", "OperationFailure(8000)")


class MongoDb:
    """MongoDB, as the service of the function."""

    name = "MongoDB"

    def __init__(self) -> None:
        self._uri: str | None = None
        self._probe: Probe | None = None
        self._control: Store | None = None
        self._is_prepared = False

    @property
    def aftermath(self) -> float:
        """Seconds after an outage in which locks and dead connections may remain."""
        return float(max(get_settings().mongo_transaction_lifetime, DEAD_CONNECTIONS))

    def open(self) -> None:
        """Read the URI, connect, and create missing indexes, as a worker does at its start.

        Raises SettingsError if MongoDB cannot be used with these settings, or if the secret cannot
        be read; pymongo's errors.
        """
        self._read_uri()
        client = connect()
        with pymongo.timeout(OPEN_TIMEOUT):
            require_replica_set(client)
            database = client[address_of(get_settings().require_mongo_uri()).database]
            for fault in make_indexes(database, find_faults(database)):
                raise SettingsError(f"MONGO_URI: MongoDB: {fault}. {fault.fix}")
        self._is_prepared = True

    def find_error(self) -> str | None:
        """Try the writes of the tasks. If the login is refused, the secret may have been changed:
        then it is read again. It is still an error, so that the failure of the task does not count.
        """
        if not self._is_prepared:
            self.open()
        if self._probe is None:
            self._probe = Probe(get_settings().require_mongo_uri())
        error = self._probe.find_error()
        if error in REFUSED_LOGINS:
            self._read_uri()
        return error

    def finish(self) -> None:
        """Write the outcomes of registrations, and send the spans. A frozen sandbox does not."""
        observer.writer.flush(FLUSH_TIMEOUT)
        if get_settings().tracing:
            from app.tracing import flush

            flush()

    def control(self) -> Store:
        """The control database of the present URI, which the workers use too. Its client connects
        at the first call: a message that succeeds at once needs none."""
        if self._control is None:
            # Not the options of the app: they were read before the secret.
            self._control = Store(ControlOptions.read(control_options(get_settings())))
        return self._control

    def _read_uri(self) -> None:
        """Read the URI of MongoDB. If it is another one than before, close the clients."""
        uri = read_mongo_uri()
        if uri == self._uri:
            return
        use_mongo_uri(uri)
        get_settings().require_mongo_uri()
        if self._uri is not None:
            disconnect()
        if self._probe is not None:
            self._probe.close()
            self._probe = Probe(uri)
        if self._control is not None:
            self._control.close()
            self._control = None
        self._uri = uri


mongodb = MongoDb()
handler = Function(app, mongodb, attempts=MongoAttempts(mongodb.control, time))

if is_function():
    get_settings().require_function()
    log_to_stdout()
    handler.open()
