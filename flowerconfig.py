"""The Flower settings and nothing else. Flower reads this file wherever `celery -A app flower`
starts; its command line goes before what stands here. What a deployment may change comes from
app/settings.py; more of Flower's own variables (`FLOWER_URL_PREFIX`) it reads itself.
"""

from app.flower import install as _install
from app.settings import get_flower_settings, get_settings

_settings = get_flower_settings()

# SQS on the Broker page, and the metrics behind the login.
_install()

address = _settings.address
port = _settings.port

# Without either, Flower does not listen beyond this machine (app/loader.py).
basic_auth = _settings.logins
auth_provider = _settings.auth_provider
auth = _settings.auth or ""
oauth2_key = _settings.oauth2_key
oauth2_secret = _settings.oauth2_secret and _settings.oauth2_secret.get_secret_value()
oauth2_redirect_uri = _settings.oauth2_redirect_uri

# What it has seen outlives a restart, and all but the last minute of it a kill.
persistent = True
db = _settings.db
state_save_interval = 60_000  # milliseconds
# It is saved on Flower's one thread, and this many tasks take about a second.
max_tasks = 10_000
# Worker processes in containers have a new name each time.
purge_offline_workers = 24 * 3600  # seconds

logging = get_settings().log_level.lower()
