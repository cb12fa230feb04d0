"""python register.py URL KEY: registers a user with the generated client, and prints the state."""

import sys

from registrations import AuthenticatedClient
from registrations.api.registrations import get_registration, register_user
from registrations.models import Accepted, Registration, RegistrationState, UserInfo

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key, prefix="", auth_header_name="X-API-Key")
user = Registration(stock_id="clients", user_id="python", user_info=UserInfo(nickname="kim"))
accepted = register_user.sync(client=client, body=user, idempotency_key="1")
assert isinstance(accepted, Accepted), accepted
state = get_registration.sync(accepted.id, client=client, wait=20)
assert isinstance(state, RegistrationState), state
sys.stdout.write(state.state)
