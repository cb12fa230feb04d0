"""python -m tests.cloudformation.server PORT: moto on 127.0.0.1, with what it lacks."""

import os
import sys
import threading

from moto.server import ThreadedMotoServer

from tests.cloudformation import moto_iam, moto_stacks, moto_types


def main() -> None:
    port = int(sys.argv[1])
    os.environ[moto_types.ENDPOINT] = f"http://127.0.0.1:{port}"
    moto_types.complete()
    moto_iam.complete()
    moto_stacks.complete()
    ThreadedMotoServer("127.0.0.1", port, verbose=False).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
