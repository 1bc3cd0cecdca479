"""Messages between services: declaring handlers, publishing, consuming, retrying and parking."""
