"""python -m tests.cloudformation.server PORT: moto on 127.0.0.1, with what it lacks."""

import os
import sys
import threading

from moto.server import ThreadedMotoServer

from tests.cloudformation import moto_iam, moto_service, moto_stacks, moto_types


def main() -> None:
    port = int(sys.argv[1])
    os.environ[moto_types.ENDPOINT] = f"http://127.0.0.1:{port}"
    # Those of AWS's own, to which templates refer.
    os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"
    # SQS allows one purge a minute.
    os.environ["MOTO_SQS_ENFORCE_STRICT_QUEUE_PURGE_BEHAVIOUR"] = "false"
    moto_types.complete()
    moto_service.complete()
    moto_iam.complete()
    moto_iam.add_owner()
    moto_stacks.complete()
    ThreadedMotoServer("127.0.0.1", port, verbose=False).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
