"""The Flower settings. Flower reads this file in whatever directory `celery -A app flower` starts.

The command line overrides these settings. The values that a deployment may change come from
app/settings/. Flower reads its other variables itself, for example `FLOWER_URL_PREFIX`.
"""

from app.flower import install as _install
from app.settings import get_flower_settings, get_settings

_settings = get_flower_settings()

# The Broker page shows SQS, and the metrics require the login.
_install()

address = _settings.address
port = _settings.port

# Without basic_auth or auth, Flower listens only on this machine (app/loader.py).
basic_auth = _settings.logins
auth_provider = _settings.auth_provider
auth = _settings.auth or ""
oauth2_key = _settings.oauth2_key
oauth2_secret = _settings.oauth2_secret and _settings.oauth2_secret.get_secret_value()
oauth2_redirect_uri = _settings.oauth2_redirect_uri

# Flower keeps its data across a restart. A kill loses at most the last minute.
persistent = True
db = _settings.db
state_save_interval = 60_000  # milliseconds
# Flower saves its data on its only thread: this many tasks take about a second.
max_tasks = 10_000
# In containers, each start of a worker has a new name.
purge_offline_workers = 24 * 3600  # seconds

logging = get_settings().log_level.lower()
