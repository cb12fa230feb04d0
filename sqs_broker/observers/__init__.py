"""Those who hear what happens to messages. None of them changes it."""
