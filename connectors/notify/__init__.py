"""How people are told what happened: by a command of their own, or by a webhook."""
